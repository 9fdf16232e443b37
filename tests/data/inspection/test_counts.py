"""Counts come from the index alone and are written for people."""

import json
from pathlib import Path

import pytest

from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.format.shards import write_shards
from llava_mini.data.inspection.stats import (
    Count,
    aligned,
    by_modality,
    by_source,
    count_lines,
    printable,
    total_bytes,
)


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    samples = []
    for number in range(10):
        record = {"source": "few" if number < 2 else "many" if number < 8 else ""}
        pictures = (
            {f"{frame:06d}.jpg": b"x" for frame in range(3)} if number < 2 else {"png": b"y"} if number < 7 else {}
        )
        if number < 2:
            record["video"] = "a.mp4"
        samples.append((str(number), {"json": json.dumps(record).encode(), **pictures}))
    return write_shards(samples, tmp_path / "set", samples_per_shard=4)


def test_samples_pictures_and_bytes_are_counted(shards: ShardSet) -> None:
    sizes = {"text": 3 * 1024, "image": 5 * 2048, "video": 2 * 4096}
    assert by_modality(shards) == [
        Count("text", 3, 0, sizes["text"]),
        Count("image", 5, 5, sizes["image"]),
        Count("video", 2, 6, sizes["video"]),
    ]
    found = [(count.name, count.samples, count.images) for count in by_source(shards)]
    assert found == [("many", 6, 5), ("few", 2, 6), ("(none)", 2, 0)]
    assert total_bytes(shards) == sum(sizes.values())


def test_both_are_one_table(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = count_lines(shards)
    assert lines[0].split() == ["samples", "images", "size"]
    assert lines[2].split() == ["image", "5", "50.0", "%", "5", "10.00", "KiB"]
    assert [line.split()[0] for line in lines[5:]] == ["many", "few", "(none)"] and lines[4] == ""
    monkeypatch.setattr("llava_mini.data.inspection.stats._MOST_SOURCES", 1)
    cut = count_lines(shards)[5:]
    assert cut[0].split() == lines[5].split() and cut[1:] == ["and 2 more sources"]


def test_a_long_name_is_shortened_in_the_middle(tmp_path: Path) -> None:
    names = ["x" * 400 + "1", "x" * 400 + "2", "y" * 41]
    samples = [(str(n), {"json": json.dumps({"source": name}).encode()}) for n, name in enumerate(names)]
    lines = count_lines(write_shards(samples, tmp_path / "long"))
    assert [line.split()[0] for line in lines[3:]] == [f"{'x' * 19}...{'x' * 18}{n}" for n in (1, 2)] + ["y" * 41]
    assert max(map(len, lines)) < 100


def test_columns_are_aligned() -> None:
    assert aligned([["", "n"], ["text", "1"], ["b", "1,000"]]) == ["          n", "text      1", "b     1,000"]


def test_what_others_wrote_moves_no_cursor() -> None:
    assert printable("é 猫\n\x1b[2Jx\u202e") == "é 猫??[2Jx?"
    assert printable("x" * 1000) == "x" * 300
