"""Files that are complete or absent: written under a temporary name and renamed, and made by one process at a time."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llava_mini.errors import UserError

_PACKAGED = Path(__file__).parent / "conf"
CONFIG_DIR = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2] / "conf"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends, and is removed when it fails."""
    token = secrets.token_hex(8)  # not the process id, which a process on another machine may have too
    temporary = path.with_name(f".{path.name}.{token}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def set_usual_mode(path: Path) -> None:
    """Give a file the mode that one made by `open` has in its folder: by the umask, or by rules of the folder's own."""
    probe = path.with_name(f".mode.{secrets.token_hex(8)}.tmp")  # os.umask tells by changing it, for all threads
    try:
        probe.touch()
        if (usual := probe.stat().st_mode) != path.stat().st_mode:
            path.chmod(stat.S_IMODE(usual))
    finally:
        probe.unlink(missing_ok=True)


def why_unreadable(folder: Path, names: str = "*") -> str | None:
    """Which file of a folder cannot be opened, and why, in one line; None where all can be or there is no folder."""
    try:
        for path in sorted(folder.iterdir()) if os.path.isdir(folder) else ():
            if path.match(names) and path.is_file():
                path.open("rb").close()
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return None


def write_text(path: Path, text: str) -> None:
    """Writes `text` in UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes `value` with its keys in their order, whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def rank_path(path: Path, rank: int) -> Path:
    """Where one of several processes writes what is `path` for rank 0: history.jsonl, history.rank1.jsonl, ..."""
    return path if rank == 0 else path.with_name(f"{path.stem}.rank{rank}{path.suffix}")


def rank_paths(path: Path) -> list[Path]:
    """The files that any rank has written for `path`, rank 0's first."""
    others = path.parent.glob(f"{path.stem}.rank*{path.suffix}")
    return [each for each in (path, *sorted(others)) if each.exists()]


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Holds `folder` (made if missing) for this process; others wait. The lock ends with the process, killed or not."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def shard_lock(folder: Path, number: int) -> Iterator[None]:
    """Holds one shard of a set in `folder` for this process, which may hold one at a time; others wait.

    The lock is a byte of one file for all shards, and ends with the process, killed or not.
    """
    with open(folder / ".shards.lock", "w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 1, number)
        yield


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place when the block ends, and is removed when it fails.

    Raises:
        UserError: `folder` is there and not an empty folder, or cannot be made.
    """
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.tmp")
    try:
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise UserError(f"{folder}: is there already; allowed is a folder that is not there, or an empty one")
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror})") from error
    try:
        yield temporary
        temporary.rename(folder)  # over an empty folder too
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
