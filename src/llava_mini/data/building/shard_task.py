"""One task of a build: one process writes one shard of the plan. Unusable records are rejected with a reason."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

from llava_mini.data.building.media import MOST_BYTES, Media
from llava_mini.data.building.plan import Plan
from llava_mini.data.building.records import Entry
from llava_mini.data.building.workers import Report
from llava_mini.data.format.shards import Members, is_written, write_shard
from llava_mini.data.inspection.counts import printable
from llava_mini.data.text.conversation import IMAGE_PLACEHOLDER, parse_record
from llava_mini.errors import SampleError, UserError
from llava_mini.files import shard_lock

_REPORT_SECONDS = 1.0


@dataclass(frozen=True)
class Progress:
    """Progress since the last report; `bytes` counts the bytes of the samples' members."""

    shards: int = 0
    samples: int = 0
    rejected: int = 0
    bytes: int = 0

    def __add__(self, more: Progress) -> Progress:
        return Progress(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(more), strict=True)))


def build_shard(plan: Plan, out: Path, shard: int, report: Report) -> None:
    """Write a shard of the set in `out`, unless another build already has; report `Progress` about once a second."""
    with shard_lock(out, shard):
        if not is_written(out, shard):  # once all shards are written, the plan may be deleted
            rejected, ignored = list[tuple[str, str]](), Counter[str]()
            samples = _samples(plan, shard, rejected, ignored, report)
            write_shard(out, shard, samples, rejected, {"plan": plan.made_from, "ignored": ignored})
    report(Progress(shards=1))


def _samples(
    plan: Plan, shard: int, rejected: list[tuple[str, str]], ignored: Counter[str], report: Report
) -> Iterator[tuple[str, Members]]:
    """Yield the usable samples; add their unread keys to `ignored`, and unusable records with reasons to `rejected`."""
    media = Media(plan.options)
    samples = size = before = 0
    last = time.monotonic()
    for key, entry in plan.entries(shard):
        try:
            members, unread = sample_of(entry, media)
        except SampleError as error:
            if plan.options.strict:
                raise UserError(f"--strict: {printable(f'{entry.name}: {error}')}") from None
            rejected.append((entry.name, str(error)))
        else:
            yield key, members
            ignored.update(unread)
            samples += 1
            size += sum(map(len, members.values()))
        if time.monotonic() - last > _REPORT_SECONDS:
            report(Progress(0, samples, len(rejected) - before, size))
            samples, size, before, last = 0, 0, len(rejected), time.monotonic()
    report(Progress(0, samples, len(rejected) - before, size))


def sample_of(entry: Entry, media: Media) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Return the members of a record's sample (the whole record, its images or frames) and the record's unread keys.

    Raises:
        SampleError: the record, its conversation or a file cannot be used.
    """
    if entry.record is None:
        raise SampleError(entry.reason)
    raw = json.dumps(entry.record, ensure_ascii=False, separators=(",", ":")).encode()
    conversation = parse_record(raw)
    conversation.check_files(stored=0)
    if conversation.num_images and not conversation.images:
        raise SampleError(f"{IMAGE_PLACEHOLDER} in a record of text only")
    members = {"json": raw, **media.pictures(entry.record)}
    if (size := sum(map(len, members.values()))) > MOST_BYTES:
        raise SampleError(f"sample of {size} bytes, {MOST_BYTES} allowed")
    return members, conversation.ignored
