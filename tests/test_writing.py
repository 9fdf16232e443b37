"""A disk that takes no more is one line that names the file, whichever library was writing; what was there stays."""

from __future__ import annotations

import errno
import os
import pickle
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from llava_mini.cli import main
from llava_mini.errors import SampleError, UserError, WriteError
from llava_mini.files import (
    atomic_path,
    copy_file,
    disk_errno,
    disk_errors_reported,
    new_folder,
    reading,
    write_text,
    writing,
)
from llava_mini.stages.checkpointing import AtomicCheckpointIO

LARGEST = 64 * 2**10  # bytes

FullDisk = Callable[[int], AbstractContextManager[None]]


def _torch(path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(LARGEST)}, path)


def _safetensors(path: Path) -> None:
    with atomic_path(path) as temporary:
        save_file({"weights": torch.zeros(LARGEST)}, temporary)


def _numpy(path: Path) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, weights=np.zeros(LARGEST))


def _text(path: Path) -> None:
    write_text(path, "x" * 2 * LARGEST)


WRITERS = pytest.mark.parametrize("write", [_torch, _safetensors, _numpy, _text])


@WRITERS
def test_the_file_is_named_and_the_old_one_stays(tmp_path: Path, write: Callable[[Path], None], full_disk: FullDisk):
    path = tmp_path / "last.ckpt"
    path.write_text("before")
    with full_disk(LARGEST), pytest.raises(WriteError, match=r"last\.ckpt: cannot be written: File too large$"):
        write(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@WRITERS
def test_the_same_writers_write_where_there_is_room(tmp_path: Path, write: Callable[[Path], None]):
    write(tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").stat().st_size > LARGEST


def test_a_folder_that_is_being_made_goes_and_is_named(tmp_path: Path, full_disk: FullDisk):
    with full_disk(LARGEST), pytest.raises(WriteError, match=r"model: cannot be written: File too large$"):  # noqa: SIM117
        with new_folder(tmp_path / "model") as folder:
            (folder / "a.txt").write_text("x" * 2 * LARGEST)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_says_how_much_is_free(tmp_path: Path):
    def fill() -> None:
        with writing(tmp_path / "a" / "b.txt"):
            Path("/dev/full").write_text("x")

    with pytest.raises(WriteError) as told:
        fill()
    free = r" \(disk of (.*): [\d.,]+ [KMG]iB free of [\d.,]+ [KMG]iB\)"
    match = re.fullmatch(r"(.*): cannot be written: No space left on device" + free, str(told.value))
    assert match and match.groups() == (f"{tmp_path}/a/b.txt", str(tmp_path))
    assert told.value.errno == errno.ENOSPC


def test_a_write_error_is_a_users_and_the_systems():
    error = WriteError(errno.EDQUOT, os.strerror(errno.EDQUOT), "runs/a")
    assert isinstance(error, UserError) and isinstance(error, OSError)
    assert str(error) == "runs/a: cannot be written: Disk quota exceeded"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    text = "one text, as torch makes a worker's error again"
    assert str(WriteError(text)) == text


def test_the_reason_is_found_in_what_came_before_a_librarys_own_error():
    error = RuntimeError("unexpected pos 1380352 vs 1380240")  # as torch says it
    assert disk_errno(error) is None
    error.__context__ = OSError(errno.ENOSPC, "No space left on device")
    assert disk_errno(error) == errno.ENOSPC
    assert disk_errno(RuntimeError("I/O error: No space left on device (os error 28)")) == errno.ENOSPC
    assert disk_errno(PermissionError(errno.EACCES, "Permission denied")) is None


def test_other_errors_pass_as_they_are(tmp_path: Path):
    with pytest.raises(KeyError), writing(tmp_path / "a"):
        raise KeyError("a")


NETWORK = OSError(errno.ETIMEDOUT, "Connection timed out")


def _after(error: Exception, cause: Exception | None = None, *, hidden: bool = False) -> Exception:
    """An error that another one led to; hidden by `from None`."""
    error.__context__, error.__suppress_context__ = cause, hidden
    return error


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied", "elsewhere/picture.png"),
        OSError(errno.EIO, "Input/output error", "elsewhere/picture.png"),
        OSError(errno.ESTALE, "Stale file handle", "elsewhere/picture.png"),
        PermissionError(errno.EACCES, "Permission denied"),  # of a socket
        BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
        UserError("elsewhere/picture.png: cannot be read"),
        _after(SampleError("picture.png cannot be read"), OSError(errno.EIO, "Input/output error")),
        _after(OSError("a server does not answer"), NETWORK),
        _after(ValueError("said in its own words"), OSError(errno.ENOSPC, "No space left"), hidden=True),
    ],
)
def test_what_is_not_the_written_files_is_not_called_so(tmp_path: Path, error: Exception):
    with pytest.raises(type(error)) as told, writing(tmp_path / "a"):
        raise error
    assert told.value is error


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EISDIR])
@pytest.mark.parametrize("name", ["a", "a/b.txt", ".", "{area}/0/a"])
def test_what_is_refused_of_the_file_itself_is_reported(tmp_path: Path, number: int, name: str):
    place = tmp_path / name.format(area=f".llava-mini-{os.getuid()}.tmp")
    with pytest.raises(WriteError, match=f"^{tmp_path}/a: cannot be written: {os.strerror(number)}$"):  # noqa: SIM117
        with writing(tmp_path / "a"):
            raise OSError(number, os.strerror(number), str(place))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ESTALE, "Stale file handle"),
        NETWORK,
        _after(RuntimeError("unexpected pos 128 vs 22"), OSError(errno.EIO, "Input/output error")),
        RuntimeError("I/O error: Stale file handle (os error 116)"),
    ],
)
def test_a_mount_that_goes_away_while_it_is_written(tmp_path: Path, error: Exception):
    with (
        pytest.raises(WriteError, match="^" + re.escape(f"{tmp_path}/a: cannot be written: ")),
        writing(tmp_path / "a"),
    ):
        raise error


def test_a_temporary_folder_is_not_named(tmp_path: Path):
    with pytest.raises(WriteError, match=rf"^{tmp_path}/model: cannot be written: Stale file handle$"):  # noqa: SIM117
        with new_folder(tmp_path / "model") as folder, writing(folder / "weights"):
            raise OSError(errno.ESTALE, "Stale file handle")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EISDIR, errno.ENOENT])
def test_a_file_that_cannot_be_read_is_named(number: int):
    with pytest.raises(UserError, match=f"^a.json: cannot be read: {os.strerror(number)}$"), reading(Path("a.json")):
        raise OSError(number, os.strerror(number))


def test_a_copy_tells_reading_from_writing(tmp_path: Path, full_disk: FullDisk):
    source, target = tmp_path / "a.json", tmp_path / "b.json"
    with pytest.raises(UserError, match=rf"^{source}: cannot be read: No such file"):
        copy_file(source, target)
    source.write_text("x" * 200)
    with full_disk(100), pytest.raises(WriteError, match=rf"^{target}: cannot be written: File too large"):
        copy_file(source, target)
    copy_file(source, target)
    assert target.read_text() == source.read_text()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.EACCES, "Permission denied", "some/log.txt"), "some/log.txt: Permission denied"),
        (OSError(errno.ESTALE, "Stale file handle", "some/log.txt"), "some/log.txt: Stale file handle"),
        (OSError(errno.EIO, "Input/output error"), "a file: Input/output error"),
    ],
)
def test_what_no_reader_or_writer_tells_is_one_line(error: OSError, told: str):
    with pytest.raises(UserError, match=f"^{told}$"), disk_errors_reported():
        raise error


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "a.txt"),
        PermissionError(errno.EACCES, "Permission denied"),
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
    ],
)
def test_a_defect_keeps_its_traceback(error: OSError):
    with pytest.raises(type(error)) as raised, disk_errors_reported():
        raise error
    assert raised.value is error


def test_a_file_that_is_written_without_more_ado_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "some/log.txt")

    monkeypatch.setattr("llava_mini.commands.config.config", full)
    assert main(["config"]) == 2
    assert capsys.readouterr().err == "llava-mini: some/log.txt: cannot be written: No space left on device\n"
