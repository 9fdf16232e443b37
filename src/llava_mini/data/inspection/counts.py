"""Counts the content of a shard set from its index alone: samples, images and bytes by modality and by source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llava_mini.data.format.shards import Modality, ShardSet
from llava_mini.errors import UserError
from llava_mini.units import size_text

_MOST_SOURCES = 30
_MOST_KEYS = 20
_LONGEST_TEXT = 300
_LONGEST_NAME = 41


@dataclass(frozen=True)
class Count:
    """Number of samples of one modality or source, of their images or video frames, and of their bytes in the tars."""

    name: str
    samples: int
    pictures: int
    bytes: int


def by_modality(shards: ShardSet) -> list[Count]:
    """Return the counts of each modality that occurs: text, image, video.

    Raises:
        UserError: The index contains another modality, or (`by_source`) a source that the listing does not name.
    """
    return _counts(shards, shards.index["modality"], [modality.name.lower() for modality in Modality])


def by_source(shards: ShardSet) -> list[Count]:
    """Return the counts of each source, the one with the most samples first."""
    counts = _counts(shards, shards.index["source"], [source or "(none)" for source in shards.sources])
    return sorted(counts, key=lambda count: -count.samples)


def total_bytes(shards: ShardSet) -> int:
    """Return the number of bytes of all samples in the tars."""
    return int(shards.index["size"].sum(dtype=np.int64))


def count_lines(shards: ShardSet) -> list[str]:
    """Return a table of the counts by modality and by source, as lines."""
    sources = by_source(shards)
    shown = [*by_modality(shards), None, *sources[:_MOST_SOURCES]]
    rows = [[""] * 5 if count is None else _row(count, len(shards)) for count in shown]
    lines = aligned([["", "samples", "", "images", "size"], *rows])
    more = len(sources) - _MOST_SOURCES
    return [*lines, f"and {more} more sources"] if more > 0 else lines


def ignored_lines(ignored: Counter[str]) -> list[str]:
    """Return a line with the keys of used records that are not read, most frequent first; no line without such keys."""
    named = [f"{printable(key)} ({count:,} records)" for key, count in ignored.most_common(_MOST_KEYS)]
    more = [f"and {len(ignored) - _MOST_KEYS} more"] if len(ignored) > _MOST_KEYS else []
    return [f"ignored keys: {', '.join(named + more)}"] if named else []


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows of a table as lines: the first column is left-aligned, all others are right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def printable(text: str) -> str:
    """Return untrusted text as part of a terminal line: short, without line breaks and control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:_LONGEST_TEXT])


def _shortened(name: str) -> str:
    """Shorten a name so that a table fits on the screen; its ends stay, because they distinguish names."""
    half = (_LONGEST_NAME - 3) // 2
    return name if len(name) <= _LONGEST_NAME else f"{name[:half]}...{name[-half:]}"


def _counts(shards: ShardSet, groups: NDArray[Any], names: Sequence[str]) -> list[Count]:
    index = shards.index
    samples = np.bincount(groups, minlength=len(names))
    if len(samples) > len(names):
        raise UserError(f"the index of {shards.folder} does not agree with its listing: damaged or changed")
    pictures = np.bincount(groups, weights=index["frames"], minlength=len(names))
    sizes = np.bincount(groups, weights=index["size"], minlength=len(names))
    rows = zip(names, samples.tolist(), pictures.tolist(), sizes.tolist(), strict=True)
    return [Count(name, count, int(frames), int(size)) for name, count, frames, size in rows if count]


def _row(count: Count, total: int) -> list[str]:
    share = f"{100 * count.samples / total:.1f} %"
    name = printable(_shortened(count.name))
    return [name, f"{count.samples:,}", share, f"{count.pictures:,}", size_text(count.bytes)]
