"""Checks a whole shard set: checksums, images, conversations, and the tokens that would be supervised.

This finds, before training, the samples that the stream would have to replace by placeholder samples.
"""

from __future__ import annotations

import functools
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from llava_mini.data.building.workers import Report, run_tasks
from llava_mini.data.format.index import image_names
from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.inspection.stats import ignored_lines, printable
from llava_mini.data.text.conversation import parse_record
from llava_mini.data.text.forms import IMAGE_PLACEHOLDER
from llava_mini.errors import SampleError, UserError
from llava_mini.files import writing
from llava_mini.media.images import verify_image

if TYPE_CHECKING:  # without a tokenizer, processes do not need torch, which takes seconds to import
    from llava_mini.data.text.labels import ConversationTokenizer

log = logging.getLogger("llava_mini")

MOST_BAD = 0.01  # largest allowed share of unusable samples
_NAMED = 20
_LOG_SECONDS = 5.0


@dataclass(frozen=True)
class BadSample:
    """A sample that cannot be used for training; `id` is the id in its record."""

    index: int
    key: str
    shard: str
    id: str
    reason: str


@dataclass
class Findings:
    """Results of checking one shard or a whole shard set.

    Attributes:
        counts: Samples, images and bad samples; with a tokenizer also tokens, supervised ones and truncated samples.
        damaged: One line for each damaged file.
        bad: Bad samples; for a whole shard set only the first ones.
        ignored: Number of records that have each key that is not read.
    """

    counts: Counter[str] = field(default_factory=Counter)
    damaged: list[str] = field(default_factory=list)
    bad: list[BadSample] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)

    def add(self, more: Findings) -> None:
        """Add the findings of another shard."""
        self.counts += more.counts
        self.ignored += more.ignored
        self.damaged = sorted(self.damaged + more.damaged)
        self.bad = sorted(self.bad + more.bad, key=lambda bad: bad.index)[:_NAMED]

    def failure(self) -> str:
        """Return why the shard set should not be used; an empty string when it may be used."""
        if self.damaged:
            return f"{len(self.damaged)} damaged files, {self.damaged[0]}"
        bad, samples = self.counts["bad"], self.counts["samples"]
        if bad > MOST_BAD * samples:
            return f"there is nothing to supervise in {bad} of {samples} samples, more than {MOST_BAD:.0%}"
        return ""


def check_set(
    shards: ShardSet,
    tokenize: ConversationTokenizer | None = None,
    *,
    workers: int = 1,
    on_bad: Callable[[BadSample], None] | None = None,
) -> Findings:
    """Read and check every sample of a shard set, in `workers` processes; without a tokenizer no tokens are counted.

    `on_bad` is called for every bad sample, shard by shard as they are ready.
    """
    found = Findings(damaged=[damage] if (damage := _damage(shards.verify_index)) else [])
    start = last = time.monotonic()

    def merge(more: Findings) -> None:
        nonlocal last
        found.add(more)
        if on_bad is not None:
            for bad in more.bad:
                on_bad(bad)
        if time.monotonic() - last > _LOG_SECONDS:
            last = time.monotonic()
            samples = found.counts["samples"]
            log.info("%d/%d samples, %.0f samples/s, %d bad", samples, len(shards), samples / (last - start),
                     found.counts["bad"])  # fmt: skip

    run_tasks(functools.partial(_check_shard, shards, tokenize), range(shards.num_shards), workers, merge)
    return found


def _check_shard(shards: ShardSet, tokenize: ConversationTokenizer | None, shard: int, report: Report) -> None:
    found = Findings()
    for verify in (shards.verify_shard, shards.verify_sidecar):
        if damage := _damage(functools.partial(verify, shard)):
            found.damaged.append(damage)
    for index in shards.samples_of(shard):
        found.counts["samples"] += 1
        try:
            counts, ignored = _check_sample(shards.read(index), tokenize)
            found.counts.update(counts)
            found.ignored.update(ignored)
        except SampleError as error:
            found.counts["bad"] += 1
            found.bad.append(
                BadSample(index, shards.key(index), shards.shard_name(index), _own_id(shards, index), str(error))
            )
    report(found)


def _damage(verify: Callable[[], None]) -> str:
    try:
        verify()
    except UserError as error:
        return str(error)
    return ""


def _check_sample(
    members: dict[str, bytes], tokenize: ConversationTokenizer | None
) -> tuple[Counter[str], tuple[str, ...]]:
    """Return what a sample adds to the counts, and the keys of its record that are not read.

    Raises:
        SampleError: The sample cannot be used; tokenizing raises this where no token would be supervised.
    """
    if "json" not in members:
        raise SampleError("it has no json member")
    conversation = parse_record(members["json"])
    images = image_names(members)
    conversation.check_files(len(images))
    for name in images:
        verify_image(members[name])
    if conversation.is_video and not images:
        raise SampleError("a video without frames")
    frames = [len(images)] if conversation.is_video else [1] * len(images)
    if conversation.num_images != len(frames):
        raise SampleError(f"{conversation.num_images} {IMAGE_PLACEHOLDER} for {len(images)} images")
    counts = Counter(images=len(images))
    if tokenize is not None:
        tokens = tokenize(conversation, frames)
        counts.update(tokens=len(tokens), supervised=tokens.num_supervised, truncated=int(tokens.truncated))
    return counts, conversation.ignored


def _own_id(shards: ShardSet, index: int) -> str:
    """Return the id of a record; an empty string if the record cannot be read or has no id."""
    try:
        record = json.loads(shards.read_record(index))
    except (ValueError, RecursionError):  # SampleError is a ValueError
        return ""
    return str(record.get("id", "")) if isinstance(record, dict) else ""


def finding_lines(shards: ShardSet, found: Findings) -> list[str]:
    """Return the findings as lines of text."""
    counts = found.counts
    lines = [
        f"{shards.folder}: {counts['samples']:,} samples in {shards.num_shards} shards, {counts['images']:,} images"
    ]
    if counts["tokens"]:
        supervised, truncated = f"{counts['supervised']:,} supervised", f"{counts['truncated']:,} samples truncated"
        lines.append(f"{counts['tokens']:,} tokens, {supervised}, {truncated}")
    lines += [f"damaged   {damage}" for damage in found.damaged]
    lines.append(f"bad       {counts['bad']:,} samples")
    lines += [f"  {printable(f'{bad.key} in {bad.shard} ({bad.id}): {bad.reason}')}" for bad in found.bad]
    if (more := counts["bad"] - len(found.bad)) > 0:
        lines.append(f"  and {more:,} more")
    return lines + ignored_lines(found.ignored)


@contextmanager
def report_to(path: Path | None) -> Iterator[Callable[[BadSample], None] | None]:
    """Yield a function that writes bad samples to a JSON Lines file as they come; None where there is no path."""
    if path is None:
        yield None
        return
    try:
        file = path.open("w", encoding="utf-8")
    except OSError as error:
        why = f"path={path} cannot be written ({error.strerror})"
        raise UserError(why, key="path", value=path) from None
    with writing(path), file:
        yield lambda bad: print(json.dumps(asdict(bad), ensure_ascii=False), file=file)
