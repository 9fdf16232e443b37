"""Facts are right for every form of record, sidecars are checked, and an index of any size costs no memory to open."""

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from tests.data.format.json_files import put

from llava_mini.bench.large_set import make_large_set
from llava_mini.data.format.index import INDEX_DTYPE, Modality, facts_of, image_names
from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.format.shards import finish_set, write_shard
from llava_mini.errors import SampleError, UserError


def record(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


@pytest.mark.parametrize(
    ("members", "names"),
    [
        (["json"], []),
        (["json", "png"], ["png"]),
        (["000001.jpg", "000000.png", "json", "000002.webp"], ["000000.png", "000001.jpg", "000002.webp"]),
        (["000000.jpeg"], ["000000.jpeg"]),
        (["npy", "00.jpg", "0000000.jpg", "jpg.txt"], []),
    ],
)
def test_pictures_are_named_in_order(members: list[str], names: list[str]) -> None:
    assert image_names(members) == names


@pytest.mark.parametrize("members", [["jpg", "png"], ["000001.jpg"], ["000000.jpg", "000002.jpg"],
                                     ["jpg", "000000.jpg"], ["000000.jpg", "000000.png"]])  # fmt: skip
def test_pictures_that_are_neither_one_nor_numbered_are_refused(members: list[str]) -> None:
    with pytest.raises(SampleError, match="neither one nor numbered"):
        image_names(members)


@pytest.mark.parametrize(
    ("raw", "text_length", "source"),
    [
        (record(conversations=[{"from": "human", "value": "äb"}, {"from": "gpt", "value": "c"}], source="s"), 3, "s"),
        (record(conversations=[{"role": "user", "content": "four"}]), 4, ""),
        (record(conversations=[{"from": "human", "value": 7}, "x", None], source=5), 0, "5"),
        (record(conversations="text"), 0, ""),
        (b"[1]", 0, ""),
        (b"{", 0, ""),
        (b"\xff", 0, ""),
        (b"[" * 100_000, 0, ""),
    ],
)
def test_facts_of_any_record(raw: bytes, text_length: int, source: str) -> None:
    facts = facts_of({"json": raw, "jpg": b""})
    assert (facts.record_bytes, facts.text_length, facts.source) == (len(raw), text_length, source)
    assert (facts.modality, facts.frames) == (Modality.IMAGE, 1)


def test_a_video_of_one_frame_is_a_video() -> None:
    facts = facts_of({"json": record(video="a.mp4", image=None), "jpg": b""})
    assert (facts.modality, facts.frames) == (Modality.VIDEO, 1)
    assert facts_of({"npy": b""}).modality == Modality.TEXT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two written shards."""
    for number in range(2):
        samples = [(f"{number}-{i}", {"json": record(source=f"s{i}"), "bin": b"x" * 600}) for i in range(3)]
        write_shard(tmp_path, number, samples)
    return tmp_path


def test_sidecars_become_one_index(folder: Path) -> None:
    shards = finish_set(folder, 2)
    assert shards.index.dtype == INDEX_DTYPE
    assert shards.index["key"].tolist() == [b"0-0", b"0-1", b"0-2", b"1-0", b"1-1", b"1-2"]
    assert shards.index["shard"].tolist() == [0, 0, 0, 1, 1, 1]
    assert shards.index["offset"].tolist() == [0, 2560, 5120] * 2
    assert shards.index["size"].tolist() == [2560] * 6
    assert shards.index["source"].tolist() == [0, 1, 2] * 2
    assert not shards.index.flags.writeable


@pytest.mark.parametrize(
    ("places", "value"),
    [
        (["samples"], ...),
        (["samples"], 4),
        (["samples", 0], "k000"),
        (["samples", 0, 0], 5),
        (["samples", 0, 0], "../k"),
        (["samples", 0, 0], "k" * 33),
        (["samples", 0, 1], "512"),
        (["samples", 0, 1], 512),
        (["samples", 0, 1], -512),
        (["samples", 0, 1], 0.0),
        (["samples", 0, 1], True),
        (["samples", 1, 1], 2048),
        (["samples", 2, 2], 10**9),
        (["samples", 2, 2], 10**30),
        (["samples", 1, 3], 2500),
        (["samples", 1, 4], 3),
        (["samples", 1, 5], -1),
        (["samples", 0, 7], 3),
        (["samples", 1], ...),
        (["rejected"], ...),
        (["name"], "shard-000000.tar"),
        (["name"], "../shard-000001.tar"),
        (["bytes"], "many"),
        (["sha256"], "abc"),
    ],
)
def test_a_malformed_sidecar_is_named(folder: Path, places: list[str | int], value: object) -> None:
    put(folder / "shard-000001.json", places, value)
    with pytest.raises(UserError, match=r"shard-000001\.(json|tar) is malformed"):
        finish_set(folder, 2)
    assert not (folder / "shards.json").exists()


@pytest.mark.parametrize(("content", "message"), [(b"{", "not valid JSON"), (b"[]", "JSON object"), (b"{}", "version")])
def test_a_sidecar_that_is_none_is_named(folder: Path, content: bytes, message: str) -> None:
    (folder / "shard-000001.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"shard-000001\.json .*{message}"):
        finish_set(folder, 2)


def test_more_sources_than_can_be_numbered_are_refused(folder: Path) -> None:
    path = folder / "shard-000001.json"
    content = json.loads(path.read_text())
    row, end = content["samples"][0], 0
    content["samples"] = []
    for number in range(2**16):
        content["samples"].append([f"n{number}", end, 2560, *row[3:7], f"source {number}"])
        end += 2560
    content["bytes"] = end
    path.write_text(json.dumps(content))
    os.truncate(folder / "shard-000001.tar", end)
    with pytest.raises(UserError, match="more than 65536 sources"):
        finish_set(folder, 2)


def test_opening_a_large_set_makes_nothing_for_every_sample(tmp_path: Path) -> None:
    folder = tmp_path / "large"
    make_large_set(folder, 300_000)
    ShardSet(folder)  # imports and caches that are made once
    tracemalloc.start()
    shards = ShardSet(folder)
    memory, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(shards), shards.key(299_999), shards.shard_name(299_999)) == (
        300_000,
        "000299999",
        "shard-000299.tar",
    )
    assert memory < 300_000  # less than one byte a sample
    assert peak < 5_000_000
