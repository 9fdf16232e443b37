"""Safetensors files have the mode of others, and an error says what is wrong."""

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from llava_mini.models.tensor_files import load_tensors, open_tensors, save_tensors


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
def test_a_file_of_the_usual_mode(tmp_path: Path, umask: int, mode: int) -> None:
    path = tmp_path / "a.safetensors"
    before = os.umask(umask)
    try:
        save_tensors({"a": torch.arange(3)}, path, {"format": "pt"})
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert load_tensors(path)["a"].tolist() == [0, 1, 2]
    with open_tensors(path) as file:
        assert file.metadata() == {"format": "pt"}
    assert [each.name for each in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_file_that_may_not_be_read_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors({"a": torch.arange(3)}, path)

    def refused(path: Path, *_: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(PermissionError, match=f"Permission denied: '{path}'"):
        load_tensors(path)


def test_what_is_missing_or_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_tensors(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes(b"nothing of it")
    with pytest.raises(SafetensorError):
        load_tensors(tmp_path / "a.safetensors")
