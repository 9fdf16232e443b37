"""A file that is empty, torn, of another kind, forbidden or on a lost mount: one line, or the last good state."""

from __future__ import annotations

import builtins
import errno
import io
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.faults.readers import READERS, Reader

from llava_mini.errors import UserError

REFUSED = {"EACCES": errno.EACCES, "ESTALE": errno.ESTALE, "ETIMEDOUT": errno.ETIMEDOUT}
NEEDS_A_MODEL = ("inference.session_file:load",)  # a good file's reading is tested in tests/inference
FAULTS = ["empty", "torn", "directory", "EIO", *REFUSED]


def _refuse(monkeypatch: pytest.MonkeyPatch, path: Path, number: int) -> None:
    """Whoever opens `path` is refused, also root."""

    def refusing(real: Callable[..., Any]) -> Callable[..., Any]:
        def opened(name: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(name, str | os.PathLike) and Path(name) == path:
                raise OSError(number, os.strerror(number), str(path))
            return real(name, *args, **kwargs)

        return opened

    for module, name in ((builtins, "open"), (io, "open"), (os, "open")):
        monkeypatch.setattr(module, name, refusing(getattr(module, name)))


def _spoil(path: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Give a good file a fault; the system's words for it, if it has some."""
    content = path.read_bytes()
    if fault in REFUSED:
        _refuse(monkeypatch, path, REFUSED[fault])
        return os.strerror(REFUSED[fault])
    path.unlink()
    if fault == "directory":
        path.mkdir()
    elif fault == "EIO":  # opens, and its first byte cannot be read
        path.symlink_to("/proc/self/mem")
    else:
        path.write_bytes(b"" if fault == "empty" else content[: len(content) // 2])
    return ""


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.id)
def test_a_reader(
    reader: Reader, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reader.make(tmp_path)
    path = tmp_path / reader.file
    words = _spoil(path, fault, monkeypatch)
    if fault in reader.instead:
        with caplog.at_level(logging.WARNING):
            assert reader.instead[fault](reader.read(tmp_path))
        return
    with pytest.raises(reader.errors.get(fault, UserError)) as told:
        reader.read(tmp_path)
    text = str(told.value)
    assert "\n" not in text
    assert (reader.name or str(path)) in text, text
    assert words in text


@pytest.mark.parametrize(
    "reader", [reader for reader in READERS if reader.functions != NEEDS_A_MODEL], ids=lambda reader: reader.id
)
def test_a_good_file_is_read(reader: Reader, tmp_path: Path) -> None:
    reader.make(tmp_path)
    reader.read(tmp_path)
