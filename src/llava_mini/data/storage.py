"""Where the files of a shard set lie, and how a stretch of one is read."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any


class LocalStorage:
    """Files of a local folder; those used last stay open.

    Args:
        folder: Where they lie.
        max_open: How many stay open; a set may have thousands of shards, a process may open about a thousand files.
    """

    def __init__(self, folder: Path, max_open: int) -> None:
        self.folder, self.max_open = folder, max_open
        self._open: OrderedDict[str, int] = OrderedDict()

    def fetched(self, name: str) -> Path:
        """The path of a whole file, which may not exist."""
        return self.folder / name

    def read(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on; fewer where the file ends.

        Raises:
            OSError: it cannot be read.
        """
        return os.pread(self._descriptor(name), size, offset)

    def _descriptor(self, name: str) -> int:
        """An open file; the one used longest ago is closed when there are too many."""
        if name not in self._open:
            if len(self._open) >= self.max_open:
                os.close(self._open.popitem(last=False)[1])
            self._open[name] = os.open(self.folder / name, os.O_RDONLY)
        self._open.move_to_end(name)
        return self._open[name]

    def close(self) -> None:
        """Closes the files; a later read opens them again."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """File descriptors do not travel to another process."""
        return {**self.__dict__, "_open": OrderedDict()}
