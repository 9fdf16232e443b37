"""A disk that is full, read-only, forbidden or gone is one line that names file and cause; what was there stays."""

from __future__ import annotations

import builtins
import errno
import io
import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from tests.faults.writers import WRITERS, Writer

from llava_mini.errors import UserError

REFUSED = ["EROFS", "EACCES", "EDQUOT", "ESTALE", "ETIMEDOUT"]
FLUSHED = ["ENOSPC", "EDQUOT", "EIO"]  # a network's disk tells of them when a file is flushed
LARGEST = 20  # bytes
LOCKS = (".lock", ".shards.lock", "tracking.lock")
writers = pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.id)


def _refuse(monkeypatch: pytest.MonkeyPatch, folder: Path, number: int) -> None:
    """Nothing can be made or written in `folder`, also by root."""

    def refusing(real: Callable[..., Any], writes: Callable[..., bool]) -> Callable[..., Any]:
        def made(name: Any, *args: Any, **kwargs: Any) -> Any:
            named = isinstance(name, str | os.PathLike) and folder in Path(name).parents
            if named and writes(*args, **kwargs):
                raise OSError(number, os.strerror(number), str(name))
            return real(name, *args, **kwargs)

        return made

    def opens_to_write(mode: Any = "r", *_: Any, **__: Any) -> bool:
        return bool(mode & os.O_ACCMODE) if isinstance(mode, int) else bool(set("wax+") & set(mode))

    for module in (builtins, io, os):
        monkeypatch.setattr(module, "open", refusing(module.open, opens_to_write))
    monkeypatch.setattr(os, "mkdir", refusing(os.mkdir, lambda *_, **__: True))


def _content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in LOCKS}


def _before(writer: Writer, folder: Path) -> dict[Path, bytes]:
    """A good disk takes everything, and another attempt finds it there."""
    if writer.kind != "new":
        writer.write(folder)
        assert (folder / writer.file).exists()
    return _content(folder)


def _check_told(told: UserError, writer: Writer, folder: Path, words: str) -> None:
    text = str(told)
    assert text.count(str(folder)) == 1 + text.count("(disk of "), text  # once, and of no temporary file
    assert str(folder / writer.file) in text or (writer.kind == "lock" and str(folder) in text), text
    assert words in text and "\n" not in text, text
    assert ".llava-mini" not in text


def _check_kept(writer: Writer, folder: Path, before: dict[Path, bytes]) -> None:
    after = _content(folder)
    if writer.kind == "appended":
        assert after.keys() == before.keys()
        assert all(after[path].startswith(content) for path, content in before.items())
    elif writer.kind != "folder":
        assert after == before
    assert not list(folder.rglob(".llava-mini*"))


@pytest.mark.parametrize("number", REFUSED)
@writers
def test_what_cannot_be_made(
    writer: Writer, number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before, words = _before(writer, tmp_path), os.strerror(getattr(errno, number))
    with monkeypatch.context() as patched:
        _refuse(patched, tmp_path, getattr(errno, number))
        if writer.warns:
            with caplog.at_level(logging.WARNING):
                writer.write(tmp_path)
            assert f"{tmp_path / writer.file} cannot be written ({words}" in caplog.text
        else:
            with pytest.raises(UserError) as told:
                writer.write(tmp_path)
            _check_told(told.value, writer, tmp_path, words)
    _check_kept(writer, tmp_path, before)


@pytest.mark.parametrize("number", FLUSHED)
@pytest.mark.parametrize("writer", [w for w in WRITERS if w.kind == "whole"], ids=lambda writer: writer.id)
def test_what_cannot_be_flushed(writer: Writer, number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, words = _before(writer, tmp_path), os.strerror(getattr(errno, number))

    def refused(_: int) -> None:
        raise OSError(getattr(errno, number), words)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refused)
        with pytest.raises(UserError) as told:
            writer.write(tmp_path)
    _check_told(told.value, writer, tmp_path, words)
    _check_kept(writer, tmp_path, before)


@pytest.mark.parametrize("writer", [w for w in WRITERS if w.kind != "lock"], ids=lambda writer: writer.id)
def test_a_full_disk(
    writer: Writer,
    tmp_path: Path,
    full_disk: Callable[[int], AbstractContextManager[None]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = _before(writer, tmp_path)
    if writer.warns:
        with full_disk(LARGEST):
            writer.write(tmp_path)
        assert f"{tmp_path / writer.file} cannot be written (" in caplog.text
    else:
        with full_disk(LARGEST), pytest.raises(UserError) as told:
            writer.write(tmp_path)
        _check_told(told.value, writer, tmp_path, "File too large")
    _check_kept(writer, tmp_path, before)
