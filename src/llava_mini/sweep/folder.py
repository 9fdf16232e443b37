"""Folder of a sweep, which the runner writes and the report reads.

    SWEEP/sweep.json               what was requested: arguments, commit, code version, the runs
    SWEEP/runs/<label>-<hash8>/    one run: log.txt, config.yaml, checkpoints, predictions_{val,test}.npz,
                                   result.json once it is finished, failure.json when its last attempt failed

The hash covers config and code version, so runs of other code versions are never mixed up or overwritten.
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
    """Content of `sweep.json`."""

    arguments: list[str]  # of the command
    commit: str  # "+changes" when the working tree differs from it
    code_version: str  # hash of the package's source
    started: str  # last time, ISO 8601
    runs: list[Run]  # all that the command requests


@dataclass(frozen=True)
class Outcome:
    """State of a run, with its `result.json` if it is finished, or one line on what went wrong if it failed."""

    state: State
    result: dict[str, Any] | None = None
    error: str | None = None


def run_folder(sweep_dir: Path, run: Run, code_version: str) -> Path:
    """Path of a run's folder."""
    digest = hashlib.sha256(f"{run.config_hash} {code_version}".encode()).hexdigest()
    return sweep_dir / "runs" / f"{run.label}-{digest[:8]}"


def outcome(folder: Path, run: Run, code_version: str) -> Outcome:
    """Read the outcome of a run from its folder; a result of another config or code version is not used."""
    try:
        result, failure = (_read_json(folder / name) for name in ("result.json", "failure.json"))
    except UserError as error:
        return Outcome("failed", error=str(error))
    if result is not None and result.get("status") == "finished":
        if (result.get("config_hash"), result.get("code_version")) == (run.config_hash, code_version):
            return Outcome("finished", result=result)
        return Outcome("failed", error="result.json is of another config or code: was it changed during the sweep?")
    if result is None and (folder / "result.json").exists():
        return Outcome("failed", error="result.json is damaged; the same sweep command makes it again")
    if failure is not None:
        return Outcome("failed", error=str(failure.get("error", "failure.json does not say why")))
    return Outcome("interrupted")


def record_failure(folder: Path, error: str) -> None:
    """Write `failure.json`, which says why an attempt failed."""
    write_json(folder / "failure.json", {"error": error})


def forget_failure(folder: Path) -> None:
    """Delete `failure.json` before another attempt."""
    (folder / "failure.json").unlink(missing_ok=True)


def write_sweep(sweep_dir: Path, sweep: Sweep) -> None:
    """Write `sweep.json`."""
    write_json(sweep_dir / "sweep.json", asdict(sweep))


def read_sweep(sweep_dir: Path) -> Sweep:
    """Read `sweep.json`.

    Raises:
        UserError: if the folder is not a sweep's folder.
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
    """Lock the folder, so that only one sweep command uses it at a time.

    Raises:
        UserError: if another sweep is running in the folder, or the folder cannot be written.
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
    """Write strict JSON atomically: the whole file or nothing."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def _read_json(path: Path) -> dict[str, Any] | None:
    """Object in a JSON file; None if there is no file or it is truncated. Raises UserError if it cannot be read."""
    try:
        return read_json(path)
    except UserError as error:
        if isinstance(error.__cause__, OSError) and not isinstance(
            error.__cause__, FileNotFoundError | NotADirectoryError
        ):
            raise
        return None
