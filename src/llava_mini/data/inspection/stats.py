"""Statistics of a shard set: samples by modality and source, turns, lengths of text, frames of videos.

Only the turns are counted in the records; everything else is in the index.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llava_mini.data.building.workers import Report, run_tasks
from llava_mini.data.format.shards import Modality, ShardSet
from llava_mini.data.inspection.counts import aligned, count_lines, total_bytes
from llava_mini.data.text.conversation import parse_record
from llava_mini.errors import SampleError
from llava_mini.units import size_text


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
    """Distributions over the samples of a set.

    Attributes:
        turns: Number of used answers of a sample, only for samples whose record can be used.
        text: Number of characters of all messages of a sample, by modality.
        frames: Number of frames of a video.
        images: Number of images of a sample with images.
    """

    turns: Distribution
    text: dict[Modality, Distribution]
    frames: Distribution
    images: Distribution


def statistics(shards: ShardSet, workers: int = 1) -> Statistics:
    """Compute the statistics of a set from its index and records.

    Args:
        shards: Shard set to read.
        workers: Number of processes that read records.
    """
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
