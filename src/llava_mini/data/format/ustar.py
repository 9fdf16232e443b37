"""The tar format as shards use it: plain USTAR files, nothing else.

A sample is read with one ranged read of its part of the tar, so its members are found here without a file. Headers are
parsed strictly, and a member that is not `<key>.<extension>` is refused, whatever path its name would give.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable, Mapping
from typing import BinaryIO

from llava_mini.errors import SampleError

BLOCK = tarfile.BLOCKSIZE
# What follows `<key>.`; no part is empty, so no name contains `..`, and there is no slash.
EXTENSION = re.compile(r"[A-Za-z0-9_\-]+(\.[A-Za-z0-9_\-]+)*")
_MAGIC = b"ustar\x0000"
_REGULAR = (b"0", b"\0")


def write_tar(file: BinaryIO, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> Iterable[tuple[str, int, int]]:
    """Write samples to `file` and yield key, offset and size of each; equal samples give equal bytes.

    The json member comes first, the others follow by name; times, owners and modes are the same for all.
    """
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, members in samples:
            offset = tar.offset
            for extension in sorted(members, key=lambda name: (name != "json", name)):
                info = tarfile.TarInfo(f"{key}.{extension}")  # mtime 0, owner 0, mode 0644
                info.size = len(members[extension])
                tar.addfile(info, io.BytesIO(members[extension]))
            yield key, offset, tar.offset - offset


def parse_members(raw: bytes, key: str) -> dict[str, bytes]:
    """Return the members of sample `key` by extension, from its part of a tar.

    Raises:
        SampleError: A header is damaged, or a member is not a regular file, is incomplete, occurs twice, or has another
            name than `<key>.<extension>`.
    """
    members: dict[str, bytes] = {}
    place = 0
    while place < len(raw):
        name, size = _header(raw[place : place + BLOCK])
        content = raw[place + BLOCK : place + BLOCK + size]
        extension = name.removeprefix(f"{key}.")
        if extension == name or not EXTENSION.fullmatch(extension) or extension in members:
            raise SampleError(f"tar member {name!r} is not {key}.<extension>, or occurs twice")
        if len(content) < size:
            raise SampleError(f"tar member {name!r} ends after {len(content)} of {size} bytes")
        members[extension] = content
        place += BLOCK + -(-size // BLOCK) * BLOCK  # contents are padded to whole blocks
    return members


def _header(header: bytes) -> tuple[str, int]:
    """Return name and size of a regular file, from its header."""
    if len(header) < BLOCK or header[257:265] != _MAGIC or header[345] or header[156:157] not in _REGULAR:
        raise SampleError("a tar member is no regular USTAR file")
    try:
        size, checksum = (int(field.rstrip(b"\0 "), 8) for field in (header[124:136], header[148:156]))
        name = header[:100].rstrip(b"\0").decode("ascii")
    except ValueError:
        raise SampleError("a tar header is damaged") from None
    if size < 0 or checksum != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        raise SampleError("a tar header is damaged")
    return name, size
