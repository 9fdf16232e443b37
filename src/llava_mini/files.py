"""Files that are complete or absent: written in a place of their own and renamed, and made by one process at a time.

What is being written lies in `.llava-mini-UID.tmp/TOKEN/` beside its target, on the same file system. Its writer holds
a lock (`flock`) in there, which ends with the process, killed or not. So the next writer tells places of dead writers
from those of living ones, on any machine that shares the folder and its locks, and removes the former.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from llava_mini.errors import SampleError, UserError, WriteError

_PACKAGED = Path(__file__).parent / "conf"
CONFIG_DIR = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2] / "conf"


_AREA = f".llava-mini-{os.getuid()}.tmp"  # one for each user, because another's may not be writable
_PLACE = re.compile(r"[0-9a-f]{16}")
_LOCK = ".lock"
_ATTEMPTS = 100  # at a place that vanishes, before it is the mount that has
# A disk that takes no more: full, quota, largest file of the process, mounted for reading.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_AWAY = (errno.EIO, errno.ESTALE)
# A disk or a mount that is gone, whatever was to be read or written.
MOUNT_GONE = (*_AWAY, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.ENXIO, errno.ENODEV)
_GONE = (errno.ENOENT, errno.ESTALE)  # removed here, or on another machine


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path, of the same name, that takes the place of `path` when the block ends; removed when it fails.

    Raises:
        WriteError: the disk is full, or takes no files for another reason; `path` is as it was.
    """
    # The inner one tells what is free while it is full, the outer one is for the workplace itself.
    with writing(path), _workplace(path.parent) as place, writing(path):
        temporary = place / path.name
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within it, what a disk refuses is a WriteError that names `path`, in whichever words a library says it.

    Args:
        path: The file or folder that the block writes.

    Raises:
        WriteError: see `errors`; any other error passes as it is, that of another file which the block reads too.
    """
    try:
        yield
    except WriteError as error:  # of this block's own temporary file
        if path.parent.absolute() / _AREA not in Path(str(error.filename)).absolute().parents:
            raise
        again = error.errno or 0
        raise WriteError(again, os.strerror(again) + _room(path, again), str(path)) from error
    except (UserError, SampleError):  # they have named the culprit
        raise
    except Exception as error:
        refused = _refusal(error, path)
        if refused is None:
            raise
        raise WriteError(refused, os.strerror(refused) + _room(path, refused), str(path)) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Within it, whatever the system refuses is a UserError that names `path`, the file that the block reads.

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
def disk_trouble_told() -> Iterator[None]:
    """Around a whole command: what the system refuses of a file without `writing` or `reading` is one line too.

    Raises:
        WriteError: the disk takes no more; it names the file where the system's error does.
        UserError: a file may not be used, or the disk or mount that it lies on is gone.
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
    """The system's number for a disk that took no more, wherever in an error's causes it is; None for other errors.

    torch raises "unexpected pos 128 vs 22" after the OSError, and safetensors has the number in its text only.
    """
    return next((number for number, _ in _system_errors(error) if number in _DISK), None)


def _refusal(error: BaseException, path: Path) -> int | None:
    """The system's number where it is `path` that is refused: what is full, what bears its name, or what is nameless.

    A time-out may be a server's, deeper in the causes.
    """
    for number, name in _system_errors(error):
        nameless = number in _AWAY or (number == errno.ETIMEDOUT == getattr(error, "errno", None))
        if number in _DISK or (nameless if name is None else _is_of(Path(name).absolute(), path.absolute())):
            return number
    return None


def _is_of(name: Path, path: Path) -> bool:
    """Whether a name is `path`, what lies in it or around it, or its temporary file."""
    return path in (name, *name.parents) or name in path.parents or path.parent / _AREA in (name, *name.parents)


def _system_errors(error: BaseException) -> Iterator[tuple[int, str | None]]:
    """Number and file name of the system's errors in an error's causes, except where it was raised `from None`."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno is not None:
            yield seen.errno, seen.filename if isinstance(seen.filename, str) else None
        elif found := re.search(r"\(os error (\d+)\)", str(seen)):
            yield int(found[1]), None
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def _room(path: Path, number: int) -> str:
    """` (disk of runs/a: 3 MiB free of 6)`, where a disk is full that can be asked."""
    if number != errno.ENOSPC:
        return ""
    folder = next((parent for parent in path.absolute().parents if parent.is_dir()), Path("/"))
    usage = shutil.disk_usage(folder)
    return f" (disk of {folder}: {usage.free / 2**20:,.0f} MiB free of {usage.total / 2**20:,.0f})"


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` when the block ends, and is removed when it fails.

    Raises:
        WriteError: the disk takes no more.
        UserError: `folder` is there and not an empty folder, or cannot be made.
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
        with writing(folder):  # within the workplace, to tell what is free while it is full
            yield temporary
            temporary.rename(folder)  # over an empty folder too


def remove_leftovers(folder: Path) -> None:
    """Removes what killed writers have left in `folder`; what a living one is writing stays.

    Every writer does so first. Where nothing more will be written, call it when the folder is opened.
    """
    area = folder / _AREA
    try:
        places = [] if area.is_symlink() else list(area.iterdir())
    except OSError:  # nothing is being written, or no folder at all
        return
    for place in places:
        with suppress(OSError):  # it is in use, gone by now, or on a file system without locks
            if _PLACE.fullmatch(place.name) and not place.is_symlink():
                with open(place / _LOCK, "a") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(place)
        _remove_empty(place)
    _remove_empty(area)


@contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """A new, empty folder within `folder` for this writer alone, removed with all that is in it when the block ends."""
    remove_leftovers(folder)
    place, lock = _locked_place(folder / _AREA)
    try:
        with lock:
            try:
                yield place
            finally:
                shutil.rmtree(place, ignore_errors=True)
    finally:  # NFS keeps a folder as long as a file of it is open, here the lock
        _remove_empty(place)
        _remove_empty(place.parent)


def _locked_place(area: Path) -> tuple[Path, IO[str]]:
    """A new folder in `area`, and the lock that says that its writer lives."""
    attempts = 0
    while True:
        attempts += 1
        with suppress(FileExistsError):
            area.mkdir()
        place = area / secrets.token_hex(8)  # not the process id, which a process on another machine may have too
        try:
            place.mkdir()
            lock = open(place / _LOCK, "a")  # noqa: SIM115 - it stays open
        except OSError as error:
            # Another writer took the area for empty, or the place for a leftover.
            if error.errno in _GONE and attempts <= _ATTEMPTS:
                continue
            shutil.rmtree(place, ignore_errors=True)
            _remove_empty(area)
            raise
        if _lock_alone(lock, place / _LOCK):
            return place, lock
        lock.close()


def _lock_alone(lock: IO[str], path: Path) -> bool:
    """Locks a new file, unless another writer has taken its folder for a leftover."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks on this file system, so nobody can take another's place for a leftover
        return True
    try:
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # others are at work in it, or have removed it
        folder.rmdir()


def set_usual_mode(path: Path) -> None:
    """Give a file the mode that one made by `open` has in its folder: by the umask, or by rules of the folder's own."""
    with _workplace(path.parent) as place:  # so that the next writer removes what a killed one leaves
        probe = place / path.name
        probe.touch()  # os.umask tells by changing it, for all threads
        if (usual := probe.stat().st_mode) != path.stat().st_mode:
            path.chmod(stat.S_IMODE(usual))


def why_unreadable(folder: Path, names: str = "*") -> str | None:
    """Which file of a folder cannot be opened, and why, in one line; None where all can be or there is no folder."""
    try:
        for path in sorted(folder.iterdir()) if os.path.isdir(folder) else ():
            if path.match(names) and path.is_file():
                path.open("rb").close()
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return None


def copy_file(source: Path, target: Path) -> None:
    """Copies a small file; what cannot be read is told apart from what cannot be written.

    Raises:
        UserError: `source` cannot be read.
        WriteError: `target` cannot be written.
    """
    with reading(source):
        content = source.read_bytes()
    with writing(target):
        target.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Writes `text` in UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes `value` with its keys in their order, whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of this program's.

    Raises:
        UserError: it cannot be read, is empty or torn, or holds something else.
    """
    with reading(path):
        raw = path.read_bytes()
    if not raw.strip(b"\0 \n"):  # as a crash of the machine may leave it
        raise UserError(f"{path}: is empty")
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is torn or no JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no JSON object")
    return value


def whole_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of a JSONL file that this program appends to, as text and as what they hold; what a crash tore is not.

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
    """Where one of several processes writes what is `path` for rank 0: history.jsonl, history.rank1.jsonl, ..."""
    return path if rank == 0 else path.with_name(f"{path.stem}.rank{rank}{path.suffix}")


def rank_paths(path: Path) -> list[Path]:
    """The files that any rank has written for `path`, rank 0's first."""
    others = path.parent.glob(f"{path.stem}.rank*{path.suffix}")
    return [each for each in (path, *sorted(others)) if each.exists()]


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Holds `folder` (made if missing) for this process; others wait. The lock ends with the process, killed or not.

    A folder in which nothing can be made, as on a read-only mount, is read without.

    Raises:
        WriteError: it cannot be made or locked.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        yield
        return
    with locked(folder / ".lock"):
        yield


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds a lock file (made if missing) for this process, as `folder_lock`.

    Raises:
        WriteError: it cannot be made, or its file system has no locks.
        BlockingIOError: another process holds it, and `wait` is false.
    """
    with _lock_file(path, lambda file: fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)):
        yield


@contextmanager
def _lock_file(path: Path, take: Callable[[IO[str]], None]) -> Iterator[None]:
    """Opens a lock file (made if missing) and takes a lock on it, until the block ends."""
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
    """Holds one shard of a set in `folder` for this process, which may hold one at a time; others wait.

    The lock is a byte of one file for all shards, and ends with the process, killed or not.

    Raises:
        WriteError: it cannot be made or locked.
    """
    with _lock_file(folder / ".shards.lock", lambda file: fcntl.lockf(file, fcntl.LOCK_EX, 1, number)):
        yield
