"""What a build says: a line every few seconds, and at the end what the set holds, what was rejected, and why."""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from llava_mini.data.building.shard_task import Progress
from llava_mini.data.counts import count_lines, ignored_lines, printable, size_text, total_bytes
from llava_mini.data.index import read_sidecar
from llava_mini.data.shards import ShardSet

log = logging.getLogger("llava_mini")

_SECONDS = 5.0
_EXAMPLES = 3
_MOST_REASONS = 20


class ProgressLog:
    """Logs how far a build is, at most every five seconds.

    Args:
        num_shards: How many are to be built.
        samples_per_shard: Records of each, by which the remaining time is reckoned.
        clock: Tells seconds.
    """

    def __init__(self, num_shards: int, samples_per_shard: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = Progress()
        self._num_shards, self._num_records, self._clock = num_shards, num_shards * samples_per_shard, clock
        self._start = self._last = clock()

    def __call__(self, more: Progress) -> None:
        """Adds what a shard's task reports."""
        self.total = self.total + more
        if self._clock() - self._last >= _SECONDS:
            self._last = self._clock()
            log.info("%s", self.line())

    def line(self) -> str:
        """Shards, samples, speed, time left and what was rejected so far."""
        done, seconds = self.total, max(self._clock() - self._start, 1e-3)
        records = done.samples + done.rejected
        left = seconds * max(self._num_records - records, 0) / max(records, 1)
        return (
            f"{done.shards}/{self._num_shards} shards, {done.samples:,} samples,"
            f" {done.samples / seconds:,.0f} samples/s, {done.bytes / seconds / 1e6:,.1f} MB/s,"
            f" {_duration(left)} left, {done.rejected:,} rejected"
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


@dataclass
class LeftOut:
    """What was not used: records, by kind of reason (how often, and the first few), and keys of the other records."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    ignored: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, folder: Path, shards: Iterable[int]) -> LeftOut:
        """Read from the sidecars of these shards."""
        found = cls()
        for shard in shards:
            sidecar = read_sidecar(folder / f"shard-{shard:06d}.json")
            for name, reason in sidecar["rejected"]:
                found.add(name, reason)
            found.ignored.update(sidecar.get("notes", {}).get("ignored", {}))
        return found

    def add(self, name: str, reason: str) -> None:
        """Reasons are of one kind when they differ only behind a colon or bracket, or in numbers."""
        kind = re.sub(r"\d+", "N", re.split(r":| \(", reason, maxsplit=1)[0])
        self.counts[kind] += 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < _EXAMPLES:
            examples.append(printable(f"{name}: {reason}"))

    @property
    def count(self) -> int:
        return sum(self.counts.values())

    @property
    def first(self) -> str:
        """One example."""
        return next(iter(self.examples.values()))[0]

    def lines(self) -> list[str]:
        """A line for each kind of reason, the most frequent first, with its first examples below; then ignored keys."""
        lines = [f"rejected  {self.count:,}"]
        for kind, count in self.counts.most_common(_MOST_REASONS):
            lines.append(f"  {count:,} x {printable(kind)}")
            lines += [f"      {example}" for example in self.examples[kind]]
        if (more := len(self.counts) - _MOST_REASONS) > 0:
            lines.append(f"  and {more} more kinds of reasons; the sidecars name all")
        return lines + ignored_lines(self.ignored)


def summary(shards: ShardSet, left_out: LeftOut) -> list[str]:
    """What a complete set holds, line by line."""
    return [
        f"{shards.folder}: {len(shards):,} samples, {size_text(total_bytes(shards))}, fingerprint {shards.fingerprint}",
        *count_lines(shards),
        *left_out.lines(),
    ]
