"""Local files are read in place, few of them stay open, and every fault names the file."""

import hashlib
import os
import pickle
from pathlib import Path

import pytest

from llava_mini.data.format.storage import LocalStorage
from llava_mini.errors import UserError


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStorage:
    monkeypatch.setattr("llava_mini.data.format.storage.MOST_OPEN", 2)
    for number in range(5):
        (tmp_path / f"f{number}").write_bytes(bytes(range(number, number + 10)))
    return LocalStorage(tmp_path)


def test_stretches_are_read(storage: LocalStorage) -> None:
    assert storage.read("f3", 2, 4) == bytes([5, 6, 7, 8])
    assert storage.read("f3", 8, 4) == bytes([11, 12])
    assert storage.sha256("f0", 10) == hashlib.sha256(bytes(range(10))).hexdigest()
    assert storage.mapped("f0", 10, "") == storage.folder / "f0"
    assert storage.where("f0") == str(storage.folder / "f0")


def test_the_files_used_last_stay_open(storage: LocalStorage) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for name in ("f0", "f1", "f2", "f1", "f3"):
        storage.read(name, 0, 1)
        assert len(os.listdir("/proc/self/fd")) - before <= 2
    (storage.folder / "f1").unlink()
    assert storage.read("f1", 0, 1) == b"\x01"  # it was open
    storage.close()
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(FileNotFoundError):
        storage.read("f1", 0, 1)


def test_open_files_do_not_travel(storage: LocalStorage) -> None:
    storage.read("f0", 0, 1)
    copy = pickle.loads(pickle.dumps(storage))
    storage.close()
    assert copy.read("f0", 0, 1) == b"\0"


def test_a_listing_may_be_absent(storage: LocalStorage) -> None:
    assert storage.listing("nothing") is None
    assert LocalStorage(storage.folder / "f0").listing("nothing") is None
    assert storage.listing("f0") == bytes(range(10))
    (storage.folder / "folder").mkdir()
    with pytest.raises(UserError, match=r"folder cannot be read \(Is a directory\)"):
        storage.listing("folder")


def test_files_of_another_size_are_named(storage: LocalStorage) -> None:
    storage.check("f0", 10)
    with pytest.raises(UserError, match="f0 has 10 bytes instead of 11"):
        storage.check("f0", 11)
    with pytest.raises(UserError, match="f9 is missing"):
        storage.mapped("f9", 10, "")
