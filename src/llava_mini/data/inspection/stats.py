"""Statistics of a shard set: samples by modality and source, turns, lengths of text, frames of videos; and tables.

Only the turns are counted in the records; everything else is in the index.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llava_mini.data.building.workers import Report, run_tasks
from llava_mini.data.format.index import Modality
from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.text.conversation import parse_record
from llava_mini.errors import SampleError, UserError
from llava_mini.units import size_text

_MOST_SOURCES = 30
_MOST_KEYS = 20
_LONGEST_TEXT = 300
_LONGEST_NAME = 41


@dataclass(frozen=True)
class Distribution:
    """Values that occur, in ascending order, and how often each occurs; both [n]."""

    values: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, values: NDArray[np.integer]) -> Distribution:
        found, counts = np.unique(values, return_counts=True)
        return cls(found.astype(np.int64), counts.astype(np.int64))

    def __len__(self) -> int:
        return int(self.counts.sum())

    def quantile(self, share: float) -> int:
        """Return the smallest value that at least this share of all values does not exceed."""
        reached = int(np.searchsorted(self.counts.cumsum(), share * len(self)))
        return int(self.values[min(reached, len(self.values) - 1)])


@dataclass(frozen=True)
class Statistics:
    """Distributions over the samples: answers (where the record can be used), characters by modality, frames, images.

    Only samples with frames, or with images, count for the last two.
    """

    turns: Distribution
    text: dict[Modality, Distribution]
    frames: Distribution
    images: Distribution


def statistics(shards: ShardSet, workers: int = 1) -> Statistics:
    """Compute the statistics of a set from its index and records, which `workers` processes read."""
    modality, index = shards.index["modality"], shards.index
    turns: Counter[int] = Counter()
    run_tasks(functools.partial(_count_turns, shards), range(shards.num_shards), workers, turns.update)
    return Statistics(
        turns=Distribution.of(np.fromiter(turns.elements(), np.int64)),
        text={
            kind: Distribution.of(index["text_length"][modality == kind])
            for kind in Modality
            if (modality == kind).any()
        },
        frames=Distribution.of(index["frames"][modality == Modality.VIDEO]),
        images=Distribution.of(index["frames"][modality == Modality.IMAGE]),
    )


def _count_turns(shards: ShardSet, shard: int, report: Report) -> None:
    turns: Counter[int] = Counter()
    for index in shards.samples_of(shard):
        try:
            turns[len(parse_record(shards.read_record(index)).turns)] += 1
        except SampleError:
            continue  # `data check` reports it
    report(turns)


def statistics_lines(shards: ShardSet, found: Statistics) -> list[str]:
    """Return counts by modality and source, and a table of lengths, as lines."""
    rows: list[Sequence[str]] = [["", "samples", "min", "median", "p95", "max"]]
    named = {
        "turns": found.turns,
        **{f"characters ({kind.name.lower()})": lengths for kind, lengths in found.text.items()},
        "images of a sample": found.images,
        "frames of a video": found.frames,
    }
    rows += [
        [name, f"{len(lengths):,}", *(f"{lengths.quantile(share):,}" for share in (0, 0.5, 0.95, 1))]
        for name, lengths in named.items()
        if len(lengths)
    ]
    size = size_text(total_bytes(shards))
    return [
        f"{shards.folder}: {len(shards):,} samples in {shards.num_shards:,} shards, {size}",
        f"fingerprint {shards.fingerprint}, {shards.rejected:,} records were rejected",
        "",
        *count_lines(shards),
        "",
        *aligned(rows),
    ]


@dataclass(frozen=True)
class Count:
    """Number of samples of one modality or source, of their images or video frames, and of their bytes in the tars."""

    name: str
    samples: int
    images: int
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
    images = np.bincount(groups, weights=index["frames"], minlength=len(names))
    sizes = np.bincount(groups, weights=index["size"], minlength=len(names))
    rows = zip(names, samples.tolist(), images.tolist(), sizes.tolist(), strict=True)
    return [Count(name, count, int(frames), int(size)) for name, count, frames, size in rows if count]


def _row(count: Count, total: int) -> list[str]:
    share = f"{100 * count.samples / total:.1f} %"
    name = printable(_shortened(count.name))
    return [name, f"{count.samples:,}", share, f"{count.images:,}", size_text(count.bytes)]
