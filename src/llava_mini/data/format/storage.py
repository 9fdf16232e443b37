"""Storage of a shard set's files: how its listing and index are found, and how a range of a tar is read.

A set is read through this one interface, whether its folder is on this machine (here) or at a URL (`remote.py`).
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from pathlib import Path
from typing import Any

from llava_mini.errors import UserError

MOST_OPEN = 16  # files of a set, which may have thousands of shards; a process may open about a thousand files


class Storage(ABC):
    """The files of one shard set; the storage can be pickled, and used in a forked process."""

    @abstractmethod
    def where(self, name: str) -> str:
        """Return the location of a file as messages name it."""

    @abstractmethod
    def listing(self, name: str) -> bytes | None:
        """Return the `content` of the set's listing, which is requested first."""

    @abstractmethod
    def content(self, name: str) -> bytes | None:
        """Return the content of a whole file that is small enough for memory; None when there is none.

        Raises:
            UserError: The file cannot be read.
        """

    @abstractmethod
    def mapped(self, name: str, size: int, sha256: str) -> Path:
        """Return the path of a file to memory-map, as a local file; raise as `check` does."""

    @abstractmethod
    def check(self, name: str, size: int) -> None:
        """Check that a file that will be read has `size` bytes, as far as that can be known at once.

        Raises:
            UserError: The file is missing or has another size.
        """

    @abstractmethod
    def read(self, name: str, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset` on; fewer where the file ends.

        Raises:
            OSError: The bytes cannot be read; the message says why.
        """

    @abstractmethod
    def sha256(self, name: str, size: int) -> str:
        """Return the SHA-256 of a whole file of `size` bytes.

        Raises:
            OSError: The file cannot be read.
        """

    @abstractmethod
    def close(self) -> None:
        """Close what is open; a later read opens it again."""


class LocalStorage(Storage):
    """Files of a local folder; the most recently used ones stay open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: OrderedDict[str, int] = OrderedDict()

    def where(self, name: str) -> str:
        return str(self.folder / name)

    def listing(self, name: str) -> bytes | None:
        return self.content(name)

    def content(self, name: str) -> bytes | None:
        try:
            return (self.folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UserError(f"{self.folder / name} cannot be read ({error.strerror})") from None

    def mapped(self, name: str, size: int, sha256: str) -> Path:
        self.check(name, size)
        return self.folder / name

    def check(self, name: str, size: int) -> None:
        try:
            found = (self.folder / name).stat().st_size
        except OSError as error:
            raise UserError(f"{self.folder / name} is missing or cannot be read ({error.strerror})") from None
        if found != size:
            raise UserError(f"{self.folder / name} has {found} bytes instead of {size}: truncated or overwritten")

    def read(self, name: str, offset: int, size: int) -> bytes:
        return os.pread(self._descriptor(name), size, offset)

    def sha256(self, name: str, size: int) -> str:
        with open(self.folder / name, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _descriptor(self, name: str) -> int:
        """Return the descriptor of an open file; the least recently used one is closed when there are too many."""
        if name not in self._open:
            if len(self._open) >= MOST_OPEN:
                os.close(self._open.popitem(last=False)[1])
            self._open[name] = os.open(self.folder / name, os.O_RDONLY)
        self._open.move_to_end(name)
        return self._open[name]

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without file descriptors, which are not passed to another process."""
        return {**self.__dict__, "_open": OrderedDict()}
