"""Safetensors files, the one place that writes and opens them.

The library makes its files for their owner alone, whatever the umask, and says of every file that it cannot open that
there is none. Here they get the mode of any other file, and an error says what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from llava_mini.files import set_usual_mode


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a file.

    Args:
        tensors: Contiguous, none sharing memory with another.
        path: Of the file.
        metadata: Texts by name; transformers wants `{"format": "pt"}`.

    Raises:
        OSError: it cannot be written.
    """
    save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    set_usual_mode(path)


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """A file opened by `safe_open`.

    Raises:
        OSError: it cannot be opened; the reason is the system's.
        SafetensorError: it is no safetensors file.
    """
    path.open("rb").close()
    with safe_open(path, framework="pt") as file:
        yield file


def load_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, by name.

    Raises:
        OSError: it cannot be opened; the reason is the system's.
        SafetensorError: it is no safetensors file.
    """
    with open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
