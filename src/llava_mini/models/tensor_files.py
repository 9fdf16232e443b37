"""Safetensors files; this module is the only one that writes and opens them.

The library makes its files for their owner only, whatever the umask, and reports every file that it cannot open as
missing. Here files get the mode of any other file, and an error gives the reason.
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
    """Write tensors to a safetensors file.

    Args:
        tensors: Contiguous tensors by name, none sharing memory with another.
        path: Path of the file.
        metadata: Texts by name; transformers needs `{"format": "pt"}`.

    Raises:
        OSError: the file cannot be written.
    """
    save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    set_usual_mode(path)


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """Open a file with `safe_open`.

    Raises:
        OSError: the file cannot be opened; the reason is the system's.
        SafetensorError: the file is not a safetensors file.
    """
    path.open("rb").close()
    with safe_open(path, framework="pt") as file:
        yield file


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a file, by name.

    Raises:
        OSError: the file cannot be opened; the reason is the system's.
        SafetensorError: the file is not a safetensors file.
    """
    with open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is not a mapping
