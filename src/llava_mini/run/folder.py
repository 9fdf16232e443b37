"""Check which run a folder contains: a run continues only in a folder that its own config and code have written."""

from __future__ import annotations

import logging
from pathlib import Path

from llava_mini.config import Config, load_values
from llava_mini.errors import UserError, refused
from llava_mini.files import read_json, remove_leftovers
from llava_mini.run.differing import differing, listed
from llava_mini.run.provenance import code_version, commits_text, git_commit

log = logging.getLogger("llava_mini")

_LOGS = (".txt", ".log", ".out", ".err", ".sh", ".lock")
_BEFORE = ("failure.json", "spool.jsonl", "tracking.json")


def last_checkpoint(config: Config) -> Path:
    """Return the path of a run's last checkpoint, whether it exists or not."""
    return Path(config.run_dir) / "checkpoints" / "last.ckpt"


def kept_of(config: Config) -> str:
    """Return what a run that stops keeps, as part of its message."""
    last = last_checkpoint(config)
    return f"the last checkpoint is good: {last}" if last.exists() else "no checkpoint was due yet"


def claim(run_dir: Path, config: Config) -> bool:
    """Whether the folder contains exactly this run, finished. Incomplete files of a killed attempt are removed.

    A damaged result does not count: the run resumes from its checkpoint and writes the result again.

    Raises:
        UserError: the folder contains another run or something else, or its config or code version cannot be read.
    """
    if (run_dir / "config.yaml").exists():
        _check_config(run_dir, config)
    elif run_dir.is_dir() and (others := sorted(path.name for path in run_dir.iterdir() if not _may_precede(path))):
        listing = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        reason = f"contains {listing} and no config.yaml: no run's folder; name a new or an empty one"
        raise refused("run_dir", run_dir, reason)
    if (run_dir / "code.json").exists():
        _check_code(run_dir)
    for folder in (run_dir, run_dir / "checkpoints"):
        remove_leftovers(folder)
    return _is_finished(run_dir / "result.json")


def _may_precede(path: Path) -> bool:
    """Whether a file may be in a run's folder before the run has begun: a log, or of a sweep or tracker."""
    return path.name.startswith(".") or path.suffix in _LOGS or path.name in _BEFORE


def _check_config(run_dir: Path, config: Config) -> None:
    another, allowed = differing(load_values(run_dir / "config.yaml"), config.to_dict())
    if another:
        keys = ", ".join(text.partition("=")[0] for text in allowed)
        too = f" ({keys} differ too, and may)" if keys else ""
        reason = f"contains a run with another config: {listed(another)}{too}"
        raise refused("run_dir", run_dir, f"{reason}; give the same values, name another folder or delete it")


def _check_code(run_dir: Path) -> None:
    try:
        begun = read_json(run_dir / "code.json")
    except UserError as error:
        if isinstance(error.__cause__, OSError):
            raise
        unknown = "so it is not known which code began this run; name another folder or delete it"
        raise UserError(f"{error}, {unknown}", key="run_dir", value=run_dir) from error
    if begun.get("code_version") != code_version():
        commits = commits_text(str(begun.get("commit")), git_commit())
        raise refused("run_dir", run_dir, f"was begun with other code ({commits}); name another folder or delete it")


def _is_finished(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        read_json(path)
    except UserError as error:
        if isinstance(error.__cause__, OSError):  # it could not be read, so whether it is damaged is unknown
            raise
        log.warning("%s; the run continues from its last checkpoint", error)
        return False
    log.info("%s is finished already: %s", path.parent, path)
    return True
