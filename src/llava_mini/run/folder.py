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
        UserError: the folder contains another run, or its config or code version cannot be read.
    """
    if (run_dir / "config.yaml").exists():
        _check_config(run_dir, config)
    elif run_dir.exists() and any(run_dir.glob("checkpoints/*.ckpt")):
        raise refused("run_dir", run_dir, "contains checkpoints and no config.yaml; name another folder")
    if (run_dir / "code.json").exists():
        _check_code(run_dir)
    for folder in (run_dir, run_dir / "checkpoints"):
        remove_leftovers(folder)
    return _is_finished(run_dir / "result.json")


def _check_config(run_dir: Path, config: Config) -> None:
    another, allowed = differing(load_values(run_dir / "config.yaml"), config.to_dict())
    if another:
        keys = ", ".join(text.partition("=")[0] for text in allowed)
        too = f" ({keys} differ too, and may)" if keys else ""
        reason = f"contains a run with another config: {listed(another)}{too}"
        raise refused("run_dir", run_dir, f"{reason}; give the same values, name another folder or delete it")


def _check_code(run_dir: Path) -> None:
    begun = read_json(run_dir / "code.json")
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
