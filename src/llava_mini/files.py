"""Files that are complete or absent: written to a temporary folder, then renamed, and made by one process at a time.

A file being written is in `.llava-mini-UID.tmp/TOKEN/` next to its target, on the same file system. Its writer holds
a lock (`flock`) in that folder. The lock ends with the process, even if the process is killed. So the next writer can
tell the folders of dead writers from those of running ones, on any machine that shares the folder and its locks. It
removes the folders of dead writers.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from filelock import lock_descriptor

from llava_mini.errors import SampleError, UserError, WriteError
from llava_mini.units import size_text

log = logging.getLogger("llava_mini")

_PACKAGED = Path(__file__).parent / "conf"
CONFIG_DIR = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2] / "conf"


_AREA = f".llava-mini-{os.getuid()}.tmp"  # one per user, because another user's may not be writable
_PLACE = re.compile(r"[0-9a-f]{16}")
_LOCK = ".lock"
_SECONDS_BETWEEN_TRIES = 0.1  # at a lock that another process holds
_SECONDS_BETWEEN_WORDS = 600.0
_ATTEMPTS = 100  # at making a folder that vanishes; after that the mount itself must be gone
# The disk accepts no more data: full, quota, file size limit of the process, mounted read-only.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_AWAY = (errno.EIO, errno.ESTALE)
# The disk or mount is gone, for reading and for writing.
MOUNT_GONE = (*_AWAY, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.ENXIO, errno.ENODEV)
_GONE = (errno.ENOENT, errno.ESTALE)  # removed here, or on another machine


def is_url(text: str) -> bool:
    """Whether `text` is a URL, or data in the form of one, and not a local path."""
    return "://" in text or text.startswith("data:")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path of the same name that replaces `path` when the block ends. It is removed on failure.

    Raises:
        WriteError: the disk is full, or accepts no files for another reason; `path` is unchanged.
    """
    # The inner `writing` reports the free space while the disk is still full. The outer one covers the folder itself.
    with writing(path), _workplace(path.parent) as place, writing(path):
        temporary = place / path.name
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failed write within the block into a WriteError that names `path`, however a library words the failure.

    Args:
        path: File or folder that the block writes.

    Raises:
        WriteError: see `errors`. Any other error passes unchanged, also one about another file that the block reads.
    """
    try:
        yield
    except WriteError as error:  # of this block's own temporary file
        if path.parent.absolute() / _AREA not in Path(str(error.filename)).absolute().parents:
            raise
        again = error.errno or 0
        raise WriteError(again, os.strerror(again) + _room(path, again), str(path)) from error
    except (UserError, SampleError):  # they already name what is wrong
        raise
    except Exception as error:
        refused = _refusal(error, path)
        if refused is None:
            raise
        raise WriteError(refused, os.strerror(refused) + _room(path, refused), str(path)) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an OSError within the block into a UserError that names `path`, the file that the block reads.

    Raises:
        UserError: `path` cannot be read.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, WriteError):
            raise
        raise UserError(f"{path}: cannot be read: {error.strerror or ' '.join(str(error).split())}") from error


@contextmanager
def disk_errors_reported() -> Iterator[None]:
    """Turn file errors outside `writing` and `reading` into one-line errors. It wraps a whole command.

    Raises:
        WriteError: the disk accepts no more data; it names the file if the system's error does.
        UserError: access to a file is not permitted, or its disk or mount is gone.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, WriteError):
            raise
        if (number := disk_errno(error)) is not None:
            raise WriteError(number, os.strerror(number), str(error.filename or "a file")) from error
        if error.errno in (_AWAY if error.filename is None else (*MOUNT_GONE, errno.EACCES, errno.EPERM)):
            raise UserError(f"{error.filename or 'a file'}: {error.strerror}") from error
        raise


def disk_errno(error: BaseException) -> int | None:
    """Return the errno of a disk that accepts no more data, from anywhere in an error's causes; None for other errors.

    torch raises "unexpected pos 128 vs 22" after the OSError, and safetensors has the errno only in its text.
    """
    return next((number for number, _ in _system_errors(error) if number in _DISK), None)


def _refusal(error: BaseException, path: Path) -> int | None:
    """Return the errno if it is about `path`: the disk is full, the error names `path`, or the error names no file.

    A timeout without a file name counts only in `error` itself: deeper in the causes it may be a server's.
    """
    for number, name in _system_errors(error):
        nameless = number in _AWAY or (number == errno.ETIMEDOUT == getattr(error, "errno", None))
        if number in _DISK or (nameless if name is None else _is_of(Path(name).absolute(), path.absolute())):
            return number
    return None


def _is_of(name: Path, path: Path) -> bool:
    """Whether `name` is `path`, a file in it, a folder around it, or its temporary file."""
    return path in (name, *name.parents) or name in path.parents or path.parent / _AREA in (name, *name.parents)


def _system_errors(error: BaseException) -> Iterator[tuple[int, str | None]]:
    """Yield errno and file name of each system error in an error's causes. `raise ... from None` ends the search."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno is not None:
            yield seen.errno, seen.filename if isinstance(seen.filename, str) else None
        elif found := re.search(r"\(os error (\d+)\)", str(seen)):
            yield int(found[1]), None
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def _room(path: Path, number: int) -> str:
    """Return ` (disk of runs/a: 3.00 MiB free of 1.50 GiB)` if the disk is full, else an empty string."""
    if number != errno.ENOSPC:
        return ""
    folder = next((parent for parent in path.absolute().parents if parent.is_dir()), Path("/"))
    usage = shutil.disk_usage(folder)
    return f" (disk of {folder}: {size_text(usage.free)} free of {size_text(usage.total)})"


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `folder` when the block ends. It is removed on failure.

    Raises:
        WriteError: the disk accepts no more data.
        UserError: `folder` exists and is not an empty folder, or cannot be created.
    """
    with ExitStack() as stack:
        stack.enter_context(writing(folder))
        try:
            if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
                raise UserError(f"{folder}: is there already; allowed is a folder that is not there, or an empty one")
            if not folder.parent.exists():
                folder.parent.mkdir(parents=True, exist_ok=True)
            temporary = stack.enter_context(_workplace(folder.parent)) / folder.name
            temporary.mkdir()
        except OSError as error:
            raise UserError(f"{folder}: cannot be made ({error.strerror})") from error
        with writing(folder):  # inside the temporary folder's block, to report the free space while the disk is full
            yield temporary
            temporary.rename(folder)  # also replaces an empty folder


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left in `folder`. What a running writer is writing stays.

    Every writer does this first. Where nothing more will be written, call it when the folder is opened.
    """
    area = folder / _AREA
    try:
        places = [] if area.is_symlink() else list(area.iterdir())
    except OSError:  # nothing is being written, or no folder at all
        return
    for place in places:
        with suppress(OSError):  # it is in use, already gone, or on a file system without locks
            if _PLACE.fullmatch(place.name) and not place.is_symlink():
                with open(place / _LOCK, "a") as lock:
                    if lock_descriptor(lock.fileno(), blocking=False):
                        shutil.rmtree(place)
        _remove_empty(place)
    _remove_empty(area)


@contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """Yield a new, empty folder in `folder` for this writer only. It is removed with its files when the block ends."""
    remove_leftovers(folder)
    place, lock = _locked_place(folder / _AREA)
    try:
        with lock:
            try:
                yield place
            finally:
                shutil.rmtree(place, ignore_errors=True)
    finally:  # NFS cannot remove a folder while a file in it is open, here the lock
        _remove_empty(place)
        _remove_empty(place.parent)


def _locked_place(area: Path) -> tuple[Path, IO[str]]:
    """Return a new folder in `area`, and the lock that shows that its writer is running."""
    attempts = 0
    while True:
        attempts += 1
        with suppress(FileExistsError):
            area.mkdir()
        place = area / secrets.token_hex(8)  # not the process id, which a process on another machine may share
        try:
            place.mkdir()
            lock = open(place / _LOCK, "a")  # noqa: SIM115 - it stays open
        except OSError as error:
            # Another writer mistook the area for empty, or this folder for a leftover, and removed it.
            if error.errno in _GONE and attempts <= _ATTEMPTS:
                continue
            shutil.rmtree(place, ignore_errors=True)
            _remove_empty(area)
            raise
        if _lock_alone(lock, place / _LOCK):
            return place, lock
        lock.close()


def _lock_alone(lock: IO[str], path: Path) -> bool:
    """Lock a new file. Return False if another writer mistook its folder for a leftover."""
    try:
        if not lock_descriptor(lock.fileno(), blocking=False):
            return False
    except OSError:  # no locks on this file system, so no writer can mistake another's folder for a leftover
        return True
    try:
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # other writers use it, or have removed it
        folder.rmdir()


def set_usual_mode(path: Path) -> None:
    """Give a file the mode that `open` would give it in its folder: from the umask or the folder's own rules."""
    with _workplace(path.parent) as place:  # so that the next writer removes what a killed one leaves
        probe = place / path.name
        probe.touch()  # os.umask can only be read by changing it, for all threads
        if (usual := probe.stat().st_mode) != path.stat().st_mode:
            path.chmod(stat.S_IMODE(usual))


def why_unreadable(folder: Path, names: str = "*") -> str | None:
    """Return which file of a folder cannot be opened, or is JSON that cannot be parsed, and why, in one line.

    None if all are readable or there is no folder. Libraries name no file, or skip one that they cannot read.
    """
    try:
        for path in sorted(folder.iterdir()) if os.path.isdir(folder) else ():
            if path.match(names) and path.is_file():
                with path.open("rb") as file:
                    if path.suffix == ".json":
                        json.load(file)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    except (ValueError, RecursionError) as error:
        return f"{path}: no JSON ({error})"
    return None


def copy_file(source: Path, target: Path) -> None:
    """Copy a small file. Read errors and write errors are distinguished.

    Raises:
        UserError: `source` cannot be read.
        WriteError: `target` cannot be written.
    """
    with reading(source):
        content = source.read_bytes()
    with writing(target):
        target.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write `text` in UTF-8, completely or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON with its keys in their order, completely or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        UserError: the file cannot be read, is empty or incomplete, or contains something else.
    """
    with reading(path):
        raw = path.read_bytes()
    return parse_object(raw, str(path))


def parse_object(raw: bytes, where: str) -> dict[str, Any]:
    """Parse the content of the file `where` as a JSON object.

    Raises:
        UserError: the content is empty, incomplete, or something else.
    """
    if not raw.strip(b"\0 \n"):  # a crash of the machine may leave such a file
        raise UserError(f"{where} is empty")
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{where} does not contain a JSON object")
    return value


def whole_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the complete lines of a JSONL file that this program appends to, as text and parsed; skip broken ones.

    Raises:
        UserError: the file cannot be read.
    """
    with reading(path):
        lines = path.read_bytes().splitlines(keepends=True)
    for raw in lines:
        with suppress(ValueError, RecursionError):
            if raw.endswith(b"\n") and isinstance(value := json.loads(raw), dict):
                yield raw.decode(), value


def rank_path(path: Path, rank: int) -> Path:
    """Return the path that a rank writes instead of rank 0's `path`: history.jsonl, history.rank1.jsonl, ..."""
    return path if rank == 0 else path.with_name(f"{path.stem}.rank{rank}{path.suffix}")


def rank_paths(path: Path) -> list[Path]:
    """Return the files that the ranks have written for `path`, rank 0's first."""
    others = path.parent.glob(f"{path.stem}.rank*{path.suffix}")
    return [each for each in (path, *sorted(others)) if each.exists()]


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Lock `folder` (created if missing) for this process. Others wait. The lock ends with the process, even if killed.

    Who waits says so every few minutes: a launcher ends a run that is silent for too long.

    A folder in which no file can be created, as on a read-only mount, is not locked.

    Raises:
        WriteError: the folder cannot be created or locked.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        yield
        return
    with ExitStack() as stack:
        said = -_SECONDS_BETWEEN_WORDS
        while True:
            try:
                stack.enter_context(locked(folder / ".lock", wait=False))
                break
            except BlockingIOError:
                if time.monotonic() >= said + _SECONDS_BETWEEN_WORDS:
                    log.info("waiting for another process, which makes %s", folder)
                    said = time.monotonic()
                time.sleep(_SECONDS_BETWEEN_TRIES)
        yield


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock file (created if missing) for this process. The lock ends with the process, even if killed.

    Raises:
        WriteError: the file cannot be created, or its file system has no locks.
        BlockingIOError: another process holds the lock, and `wait` is false.
    """

    def take(file: IO[str]) -> None:
        if not lock_descriptor(file.fileno(), blocking=wait):
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK), str(path))

    with _lock_file(path, take):
        yield


@contextmanager
def _lock_file(path: Path, take: Callable[[IO[str]], None]) -> Iterator[None]:
    """Open a lock file (created if missing) and hold a lock on it until the block ends."""
    with ExitStack() as stack:
        with writing(path):
            file = stack.enter_context(open(path, "w"))
        try:
            take(file)
        except BlockingIOError:
            raise
        except OSError as error:
            raise WriteError(error.errno, error.strerror, str(path)) from error
        yield


@contextmanager
def shard_lock(folder: Path, number: int) -> Iterator[None]:
    """Lock one shard of a shard set in `folder` for this process. Others wait. A process may lock one shard at a time.

    The lock is one byte of a file that all shards share. It ends with the process, even if killed.

    Raises:
        WriteError: the file cannot be created or locked.
    """
    with _lock_file(folder / ".shards.lock", lambda file: fcntl.lockf(file, fcntl.LOCK_EX, 1, number)):
        yield
