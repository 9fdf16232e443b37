"""A shard holds what can be used of its records, as they were, and names the rest with its reason."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import webdataset

from llava_mini.data.building.plan import Options, Plan, describe_sources, frozen_plan
from llava_mini.data.building.records import Entry
from llava_mini.data.building.report import Progress
from llava_mini.data.building.run import build_shard, sample_of
from llava_mini.errors import SampleError
from llava_mini.files import atomic_path, shard_lock


@pytest.fixture
def plan(world: Path) -> Plan:
    """Of the world's records, 15 a shard."""
    sources = [world / "mix.json"]
    options = Options(world / "images", world / "videos", samples_per_shard=15)
    return frozen_plan(world / "out", sources, describe_sources(sources), options)


def test_a_sample_keeps_its_record(plan: Plan, world: Path) -> None:
    build_shard(plan, world / "out", 1, lambda progress: None)
    records = {record["id"]: record for record in json.loads((world / "mix.json").read_text())}
    samples = list(webdataset.WebDataset(str(world / "out" / "shard-000001.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"000001-{place:05d}" for place in range(13)]
    for sample, (_, entry) in zip(samples, plan.entries(1), strict=True):
        record = json.loads(sample["json"])
        assert record == entry.record == {"source": "mix", **records[record["id"]]}
        if "image" in record:
            assert sample["jpg"] == (world / "images" / record["image"]).read_bytes()


def test_progress_adds_up_and_leftovers_are_removed(
    plan: Plan, world: Path, killed_writer: Callable[[Path], Path]
) -> None:
    stale = killed_writer(world / "out" / "shard-000001.tar")
    (world / "images" / "coco" / "3.jpg").unlink()
    total = Progress()
    for shard in range(2):
        reported: list[Progress] = []
        build_shard(plan, world / "out", shard, reported.append)
        for progress in reported:
            total = total + progress
        assert not stale.exists()
    assert (total.shards, total.samples, total.rejected) == (2, 27, 1)
    size = sum(path.stat().st_size for path in (world / "images" / "coco").iterdir())
    assert total.bytes > size


def test_a_shard_that_another_build_is_writing_is_awaited_and_left_as_it_is(plan: Plan, world: Path) -> None:
    out = world / "out"
    context = multiprocessing.get_context("fork")
    ours = context.Process(target=build_shard, args=(plan, out, 0, print))
    with shard_lock(out, 0):
        with atomic_path(out / "shard-000000.tar") as temporary:
            temporary.touch()
            ours.start()
            ours.join(0.3)
            assert ours.is_alive() and temporary.exists()
        (out / "shard-000000.json").touch()
    ours.join(20)
    assert ours.exitcode == 0 and (out / "shard-000000.tar").read_bytes() == b""


def test_a_shard_of_nothing_but_rejected_records_is_written(world: Path) -> None:
    source = world / "lost.jsonl"
    records = [{"id": f"lost{number}", "image": "nothing.jpg", "conversations": []} for number in range(3)]
    source.write_text("\n".join(map(json.dumps, records)))
    options = Options(world / "images", samples_per_shard=3)
    plan = frozen_plan(world / "lost", [source], describe_sources([source]), options)
    build_shard(plan, world / "lost", 0, lambda progress: None)
    sidecar = json.loads((world / "lost" / "shard-000000.json").read_text())
    assert sidecar["samples"] == []
    assert sorted(sidecar["rejected"]) == [[f"lost{n} (lost.jsonl line {n + 1})", "no conversation"] for n in range(3)]
    tar = str(world / "lost" / "shard-000000.tar")
    assert list(webdataset.WebDataset(tar, shardshuffle=False, empty_check=False)) == []


def talk(*messages: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": role, "value": text} for role, text in messages]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({}, "no conversation"),
        ({"conversations": talk(("human", "hi"))}, "no answer"),
        ({"conversations": talk(("gpt", "hello"))}, "no answer"),
        ({"conversations": talk(("human", "hi"), ("gpt", " \n"))}, "an empty answer"),
        ({"conversations": talk(("human", "hi"), ("robot", "beep"))}, "a message from 'robot'"),
        ({"conversations": talk(("human", "<image>\nhi"), ("gpt", "a"))}, "<image> in a record of text only"),
        (
            {"conversations": talk(("human", "<video>\nhi"), ("gpt", "a")), "image": "coco/1.jpg"},
            "<video> in a record of images",
        ),
        (
            {"conversations": talk(("human", "<image> <image>"), ("gpt", "a")), "image": "coco/1.jpg"},
            "2 placeholders for 1",
        ),
        ({"conversations": talk(("human", "hi"), ("gpt", "a")), "image": "coco/99.jpg"}, "missing image"),
        (
            {"conversations": talk(("human", "hi"), ("gpt", "a")), "image": "../mix.json"},
            "image outside of the folder of images",
        ),
        ({"conversations": talk(("human", "hi"), ("gpt", "a")), "image": 7}, "image is neither a file name"),
        ({"conversations": talk(("human", "hi"), ("gpt", "a")), "video": "99.mp4"}, "missing video"),
        ({"conversations": talk(("human", "hi"), ("gpt", "a")), "image": "coco/1.jpg", "video": "1.mp4"}, "both"),
    ],
)
def test_an_unusable_record_is_rejected_with_its_reason(world: Path, record: dict[str, Any], reason: str) -> None:
    options = Options(world / "images", world / "videos")
    with pytest.raises(SampleError, match=f"^{reason}"):
        sample_of(Entry("mix.json record 1", record), options)


@pytest.mark.parametrize(
    "conversations",
    [
        talk(("gpt", "I begin"), ("human", "hi"), ("gpt", "a")),
        talk(("human", "hi"), ("gpt", "a" * 100_000)),
        talk(("system", "be brief"), ("user", "hi"), ("assistant", "a"), ("user", "and?")),
    ],
)
def test_unusual_conversations_are_kept_as_they_are(world: Path, conversations: list[Any]) -> None:
    record = {"id": "x", "conversations": conversations, "source": "own"}
    members, ignored = sample_of(Entry("mix.json record 1", record), Options())
    assert json.loads(members["json"]) == record and list(members) == ["json"] and ignored == ()


def test_a_sample_that_would_fill_the_memory_is_refused(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_mini.data.building.run.MOST_BYTES", 1000)
    record = {"conversations": talk(("human", "hi"), ("gpt", "a" * 1000))}
    with pytest.raises(SampleError, match=r"sample of \d+ bytes, 1000 allowed"):
        sample_of(Entry("", record), Options())


def test_an_error_in_the_middle_leaves_nothing(plan: Plan, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def broken(entry: Entry, options: Options) -> tuple[dict[str, bytes], tuple[str, ...]]:
        calls.append(entry)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return {"json": b"{}"}, ()

    monkeypatch.setattr("llava_mini.data.building.run.sample_of", broken)
    with pytest.raises(KeyboardInterrupt):
        build_shard(plan, world / "out", 0, lambda progress: None)
    assert sorted(path.name for path in (world / "out").iterdir()) == [".shards.lock", "plan"]
