"""Messages of a build: a line every few seconds; at the end what the set contains, what was rejected, and why."""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, field
from pathlib import Path

from llava_mini.data.format.index import read_sidecar
from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.inspection.stats import count_lines, ignored_lines, printable, total_bytes
from llava_mini.units import size_text

log = logging.getLogger("llava_mini")

_SECONDS = 5.0
_EXAMPLES = 3
_MOST_REASONS = 20


@dataclass(frozen=True)
class Progress:
    """Progress since the last report; `bytes` counts the bytes of the samples' members."""

    shards: int = 0
    samples: int = 0
    rejected: int = 0
    bytes: int = 0

    def __add__(self, more: Progress) -> Progress:
        return Progress(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(more), strict=True)))


class ProgressLog:
    """Log the progress of a build, at most every five seconds, with an estimate of the time left."""

    def __init__(self, num_shards: int, num_records: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = Progress()
        self._num_shards, self._num_records, self._clock = num_shards, num_records, clock
        self._start = self._last = clock()

    def __call__(self, more: Progress) -> None:
        """Add the progress that a shard's task reports."""
        self.total = self.total + more
        if self._clock() - self._last >= _SECONDS:
            self._last = self._clock()
            log.info("%s", self.line())

    def line(self) -> str:
        """Return a line with shards, samples, speed, time left and the number of rejected records so far."""
        done, seconds = self.total, max(self._clock() - self._start, 1e-3)
        records = done.samples + done.rejected
        left = seconds * max(self._num_records - records, 0) / max(records, 1)
        return (
            f"{done.shards}/{self._num_shards} shards, {done.samples:,} samples,"
            f" {done.samples / seconds:,.0f} samples/s, {size_text(done.bytes / seconds)}/s,"
            f" {_duration(left)} left, {done.rejected:,} rejected"
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


@dataclass
class LeftOut:
    """What was not used: rejected records by kind of reason (count, first examples), and unread keys of the others."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    ignored: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, folder: Path, shards: Iterable[int]) -> LeftOut:
        """Return what the sidecars of these shards list as not used."""
        found = cls()
        for shard in shards:
            sidecar = read_sidecar(folder / f"shard-{shard:06d}.json")
            for name, reason in sidecar["rejected"]:
                found.add(name, reason)
            found.ignored.update(sidecar.get("notes", {}).get("ignored", {}))
        return found

    def add(self, name: str, reason: str) -> None:
        """Count a rejected record; reasons that differ only in numbers or after a colon or bracket are of one kind."""
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
        """Name and reason of the first rejected record."""
        return next(iter(self.examples.values()))[0]

    def lines(self) -> list[str]:
        """Return a line per kind of reason, most frequent first, with its first examples below; then ignored keys."""
        lines = [f"rejected  {self.count:,}"]
        for kind, count in self.counts.most_common(_MOST_REASONS):
            lines.append(f"  {count:,} x {printable(kind)}")
            lines += [f"      {example}" for example in self.examples[kind]]
        if (more := len(self.counts) - _MOST_REASONS) > 0:
            lines.append(f"  and {more} more kinds of reasons; the sidecars name all")
        return lines + ignored_lines(self.ignored)


def summary(shards: ShardSet, left_out: LeftOut) -> list[str]:
    """Return what a complete set contains, line by line."""
    return [
        f"{shards.folder}: {len(shards):,} samples, {size_text(total_bytes(shards))}, fingerprint {shards.fingerprint}",
        *count_lines(shards),
        *left_out.lines(),
    ]
