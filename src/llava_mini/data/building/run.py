"""Run a build: freeze the plan or load an existing one, write its shards, complete the set.

One task is one shard, written by one process. Unusable records are rejected with a reason.

A complete shard is never written again, so a build that was ended in any way resumes from its complete shards. Any
number of processes, on any machines that share the folder, may build different parts of one plan, or the same part.
"""

from __future__ import annotations

import functools
import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from llava_mini.data.building.media import MOST_BYTES, media_members
from llava_mini.data.building.plan import (
    Options,
    Plan,
    check_same,
    describe_sources,
    frozen_plan,
    made_from,
    remove_plan,
)
from llava_mini.data.building.records import Entry
from llava_mini.data.building.report import LeftOut, Progress, ProgressLog, summary
from llava_mini.data.building.workers import Report, run_tasks
from llava_mini.data.format.index import Members
from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.format.shards import finish_set, is_complete, is_written, write_shard
from llava_mini.data.inspection.stats import printable
from llava_mini.data.text.conversation import parse_record
from llava_mini.data.text.forms import IMAGE_PLACEHOLDER
from llava_mini.errors import SampleError, UserError, refused
from llava_mini.files import folder_lock, remove_leftovers, shard_lock
from llava_mini.media.images import WHITE, Color

log = logging.getLogger("llava_mini")

_REPORT_SECONDS = 1.0


def build_set(
    sources: Sequence[Path | str],
    *,
    out: Path | str,
    images: Path | str | None = None,
    videos: Path | str | None = None,
    seed: int = 0,
    samples_per_shard: int = 1000,
    resize: int | None = None,
    fps: float = 1.0,
    workers: int = 1,
    follow_links: bool = False,
    strict: bool = False,
    fetch: Path | str | None = None,
    background: Color = WHITE,
) -> ShardSet:
    """Build a shard set from JSON or JSON Lines; a set that is already complete is only opened.

    Args:
        sources: Files of records.
        out: Folder of the set.
        images: Folder of the images that records name; None if there are none.
        videos: Folder of the videos that records name; None if there are none.
        seed: Seed of the shuffle.
        samples_per_shard: Number of records per shard.
        resize: Maximum pixels of the shorter side of a stored image or frame; None leaves images at their size and
            limits frames to 336.
        fps: Frames to store per second of video.
        workers: Number of worker processes.
        follow_links: Whether symbolic links in the folders may lead out of them.
        strict: Whether the first unusable record ends the build.
        fetch: Folder for the files that records name by URL, which stay there; None if no record may name one.
        background: Color behind transparent parts of frames, and of images that are not stored as they are.

    Raises:
        UserError: an argument is invalid, a source cannot be read, every record is unusable (or one, if strict),
            `out` cannot be written or contains something else.
        WorkerDiedError: a process was killed; complete shards are kept.
    """
    images, videos, fetch = (None if folder is None else Path(folder) for folder in (images, videos, fetch))
    options = Options(images, videos, seed, samples_per_shard, resize, fps, follow_links, strict, fetch, background)
    shards = build_part([Path(source) for source in sources], Path(out), options, workers=workers)
    if shards is None:
        raise UserError(f"{out}: a shard is missing, although all were built")
    return shards


def build_part(
    sources: Sequence[Path], out: Path, options: Options, *, workers: int, task: int = 0, of: int = 1
) -> ShardSet | None:
    """Build shards task, task + of, ... of the plan; the task that finds all shards written completes the set.

    Returns:
        The complete set, or None while shards of other tasks are missing.

    Raises:
        UserError: see `build_set`.
        WorkerDiedError: a process was killed; complete shards are kept.
    """
    if of < 1:
        raise refused("of", of, allowed="1 and above")
    if not 0 <= task < of:
        raise refused("task", task, allowed=f"tasks 0 to {of - 1}")
    if workers < 1:
        raise refused("workers", workers, allowed="1 and above")
    if out.exists() and not out.is_dir():
        allowed = "a folder, which is made if it is missing"
        raise UserError(f"out={out} is a file; allowed is {allowed}", key="out", value=out, allowed=allowed)
    described = describe_sources(sources)
    try:
        with folder_lock(out):
            if is_complete(out):
                return _opened(out, described, options)
            plan = frozen_plan(out, sources, described, options)
        _build_shards(plan, out, workers, task, of)
        with folder_lock(out):
            if is_complete(out):  # completed by another task
                return _opened(out, described, options)
            return _completed(out, plan)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); repeat the command to continue") from None


def _opened(out: Path, described: list[dict[str, Any]], options: Options) -> ShardSet:
    """Open the set that is already complete, after a check that it is the wanted one."""
    shards = ShardSet(out)
    if shards.plan is None or "sources" not in shards.plan:
        raise UserError(f"{out} contains a shard set that was not made by `data build`; name another folder")
    check_same(out, shards.plan, made_from(described, options))
    if options.strict and shards.rejected:
        why = f"strict: {out} was built without {shards.rejected} records that were rejected; delete it"
        raise UserError(why, key="strict")
    remove_plan(out)  # left by a build that was killed just before its end
    remove_leftovers(out)
    log.info("%s is complete already: %d samples, fingerprint %s", out, len(shards), shards.fingerprint[:16])
    if shards.rejected:
        log.info("%d records were rejected when it was built; delete the folder to try them again", shards.rejected)
    return shards


def _build_shards(plan: Plan, out: Path, workers: int, task: int, of: int) -> None:
    own = range(task, plan.num_shards, of)
    missing = [shard for shard in own if not is_written(out, shard)]
    part = f"task {task} of {of}: " if of > 1 else ""
    log.info(
        "%s%d records in %d shards; %d of %d to build, %d workers",
        part, plan.num_records, plan.num_shards, len(missing), len(own), min(workers, len(missing)),
    )  # fmt: skip
    if plan.options.strict:
        _check_all_used(out, (shard for shard in range(plan.num_shards) if is_written(out, shard)))
    progress = ProgressLog(len(missing), sum(map(plan.num_records_of, missing)))
    try:
        run_tasks(functools.partial(build_shard, plan, out), missing, workers, progress)
    finally:
        remove_leftovers(out)  # left by processes that were ended because another one failed
    if missing:
        log.info("%s", progress.line())


def _completed(out: Path, plan: Plan) -> ShardSet | None:
    missing = sum(not is_written(out, shard) for shard in range(plan.num_shards))
    if missing:
        log.info("%s: %d of %d shards are still missing; the task that writes the last one completes the set",
                 out, missing, plan.num_shards)  # fmt: skip
        return None
    if plan.options.strict:
        _check_all_used(out, range(plan.num_shards))
    left_out = LeftOut.of(out, range(plan.num_shards))
    if left_out.count == plan.num_records:
        raise UserError(
            f"none of the {plan.num_records} records can be used, as {left_out.first}; delete {out} to build it again"
        )
    shards = finish_set(out, plan.num_shards, {**plan.made_from, "records": plan.num_records})
    remove_plan(out)
    for line in summary(shards, left_out):
        log.info("%s", line)
    return shards


def _check_all_used(out: Path, shards: Iterable[int]) -> None:
    """Fail if a build that is not strict, or another task, left out a record of these shards."""
    left_out = LeftOut.of(out, shards)
    if left_out.count:
        why = f"strict: {left_out.first}; it is left out of a shard that is written: delete {out}"
        raise UserError(why, key="strict")


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
    samples = size = before = 0
    last = time.monotonic()
    for key, entry in plan.entries(shard):
        try:
            members, unread = sample_of(entry, plan.options)
        except SampleError as error:
            if plan.options.strict:
                raise UserError(f"strict: {printable(f'{entry.name}: {error}')}", key="strict") from None
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


def sample_of(entry: Entry, options: Options) -> tuple[dict[str, bytes], tuple[str, ...]]:
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
    members = {"json": raw, **media_members(entry.record, options)}
    if (size := sum(map(len, members.values()))) > MOST_BYTES:
        raise SampleError(f"sample of {size} bytes, {MOST_BYTES} allowed")
    return members, conversation.ignored
