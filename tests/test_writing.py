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
from llava_mini.errors import UserError, WriteError
from llava_mini.files import atomic_path, disk_errno, new_folder, write_text, writing
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
    free = r" \(disk of (.*): [\d,]+ MiB free of [\d,]+\)"
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


def test_a_file_that_is_written_without_more_ado_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "some/log.txt")

    monkeypatch.setitem(__import__("llava_mini.cli").cli.COMMANDS, "config", (full, ""))
    assert main(["config"]) == 2
    assert capsys.readouterr().err == "llava-mini: some/log.txt: cannot be written: No space left on device\n"
