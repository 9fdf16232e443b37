"""The folder of a sweep, which the runner fills and the report reads.

    SWEEP/sweep.json               what was asked for: arguments, commit, code version, the runs
    SWEEP/runs/<label>-<hash8>/    one run: log.txt, config.yaml, checkpoints, predictions_{val,test}.npz,
                                   result.json once it is finished, failure.json when its last attempt failed

The hash covers config and code version, so runs of other code are never mixed up or overwritten.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from llava_mini.errors import UserError
from llava_mini.files import locked, read_json, write_text, writing
from llava_mini.sweep.grid import Run

State = Literal["finished", "failed", "interrupted"]


@dataclass(frozen=True)
class Sweep:
    """What `sweep.json` holds.

    Attributes:
        arguments: of the sweep command.
        commit: the commit of the code, with "+changes" when the working tree differs from it.
        code_version: hash of the package's source.
        started: when the command was last given, ISO 8601.
        runs: all runs that the command asks for.
    """

    arguments: list[str]
    commit: str
    code_version: str
    started: str
    runs: list[Run]


@dataclass(frozen=True)
class Outcome:
    """How a run stands: its `result.json` when finished, one line on what went wrong when failed."""

    state: State
    result: dict[str, Any] | None = None
    error: str | None = None


def run_folder(sweep_dir: Path, run: Run, code_version: str) -> Path:
    """The folder of a run."""
    digest = hashlib.sha256(f"{run.config_hash} {code_version}".encode()).hexdigest()
    return sweep_dir / "runs" / f"{run.label}-{digest[:8]}"


def outcome(folder: Path, run: Run, code_version: str) -> Outcome:
    """How a run stands; a result of another config or code version counts as none."""
    try:
        result, failure = (_read_json(folder / name) for name in ("result.json", "failure.json"))
    except UserError as error:
        return Outcome("failed", error=str(error))
    if result is not None and result.get("status") == "finished":
        if (result.get("config_hash"), result.get("code_version")) == (run.config_hash, code_version):
            return Outcome("finished", result=result)
        return Outcome("failed", error="result.json is of another config or code: was it changed during the sweep?")
    if failure is not None:
        return Outcome("failed", error=str(failure.get("error", "failure.json does not say why")))
    return Outcome("interrupted")


def record_failure(folder: Path, error: str) -> None:
    """Notes why an attempt failed."""
    write_json(folder / "failure.json", {"error": error})


def forget_failure(folder: Path) -> None:
    """Before another attempt."""
    (folder / "failure.json").unlink(missing_ok=True)


def write_sweep(sweep_dir: Path, sweep: Sweep) -> None:
    """Writes `sweep.json`."""
    write_json(sweep_dir / "sweep.json", asdict(sweep))


def read_sweep(sweep_dir: Path) -> Sweep:
    """Reads `sweep.json`.

    Raises:
        UserError: when the folder is not of a sweep.
    """
    content = _read_json(sweep_dir / "sweep.json")
    if content is None:
        raise UserError(f"{sweep_dir}: not the folder of a sweep (it has no readable sweep.json)")
    try:
        return Sweep(**{**content, "runs": [Run(**run) for run in content["runs"]]})
    except (TypeError, KeyError) as error:
        raise UserError(f"{sweep_dir / 'sweep.json'}: not what this version writes ({error})") from error


@contextmanager
def only_sweep(sweep_dir: Path) -> Iterator[None]:
    """Holds the folder for one sweep command at a time.

    Raises:
        UserError: when another is at work in it, or it cannot be written.
    """
    with ExitStack() as stack:
        with writing(sweep_dir):
            sweep_dir.mkdir(parents=True, exist_ok=True)
        try:
            stack.enter_context(locked(sweep_dir / ".lock", wait=False))
        except BlockingIOError as error:
            raise UserError(f"{sweep_dir}: another sweep is running in this folder; wait or choose another") from error
        yield


def write_json(path: Path, content: dict[str, Any] | Sequence[Any]) -> None:
    """Writes strict JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def _read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None when there is no file or it was cut. Raises UserError when it cannot be read."""
    try:
        return read_json(path)
    except UserError as error:
        if isinstance(error.__cause__, OSError) and not isinstance(
            error.__cause__, FileNotFoundError | NotADirectoryError
        ):
            raise
        return None
