"""A build tells how far it is and how long it will take, and why records were rejected."""

import json
import logging
from pathlib import Path

import pytest

from llava_mini.data.building.report import LeftOut, Progress, ProgressLog, summary
from llava_mini.data.format.shards import finish_set, write_shard


def test_a_line_every_five_seconds(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now = [100.0]
    progress = ProgressLog(num_shards=40, num_records=40_000, clock=lambda: now[0])
    for second in range(1, 13):
        now[0] = 100 + second
        progress(Progress(shards=second % 2, samples=390, rejected=10, bytes=39_000_000))
    assert [record.message for record in caplog.records] == [
        "3/40 shards, 1,950 samples, 390 samples/s, 37.19 MiB/s, 0:01:35 left, 50 rejected",
        "5/40 shards, 3,900 samples, 390 samples/s, 37.19 MiB/s, 0:01:30 left, 100 rejected",
    ]


def test_a_build_that_has_just_begun_divides_by_nothing() -> None:
    progress = ProgressLog(num_shards=1, num_records=10, clock=lambda: 5.0)
    assert progress.line() == "0/1 shards, 0 samples, 0 samples/s, 0.00 KiB/s, 0:00:00 left, 0 rejected"


def test_hours_are_told_apart_from_minutes() -> None:
    now = [0.0]
    progress = ProgressLog(num_shards=3000, num_records=3_000_000, clock=lambda: now[0])
    now[0] = 100.0
    progress(Progress(samples=40_000))
    assert "2:03:20 left" in progress.line()


def test_rejections_are_grouped_by_kind_with_their_first_examples(tmp_path: Path) -> None:
    sample = ("a", {"json": json.dumps({"source": "s"}).encode()})
    missing = [(f"i{n}", f"missing image (No such file or directory): {n}.jpg") for n in range(5)]
    write_shard(tmp_path, 0, [sample], missing)
    write_shard(tmp_path, 1, [], [("x", "2 placeholders for 1 images"), ("y", "3 placeholders for 1 images")])
    write_shard(tmp_path, 2, [], [("z", "image cannot be decoded: it has no bytes (z.jpg)")])
    left_out = LeftOut.of(tmp_path, range(3))
    assert left_out.count == 8
    assert left_out.lines() == [
        "rejected  8",
        "  5 x missing image",
        "      i0: missing image (No such file or directory): 0.jpg",
        "      i1: missing image (No such file or directory): 1.jpg",
        "      i2: missing image (No such file or directory): 2.jpg",
        "  2 x N placeholders for N images",
        "      x: 2 placeholders for 1 images",
        "      y: 3 placeholders for 1 images",
        "  1 x image cannot be decoded",
        "      z: image cannot be decoded: it has no bytes (z.jpg)",
    ]
    lines = summary(finish_set(tmp_path, 3), left_out)
    assert "1 samples, " in lines[0] and " KiB, fingerprint " in lines[0]
    assert lines[-10:] == left_out.lines()


def test_many_kinds_of_reasons_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_mini.data.building.report._MOST_REASONS", 2)
    left_out = LeftOut()
    for reason in ("a", "b", "c", "c", "b"):
        left_out.add("x", reason)
    assert [line for line in left_out.lines() if not line.startswith("      ")] == [
        "rejected  5", "  2 x b", "  2 x c", "  and 1 more kinds of reasons; the sidecars name all"
    ]  # fmt: skip
    assert LeftOut().lines() == ["rejected  0"]


def test_keys_that_are_not_read_are_reported_once_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for shard, ignored in enumerate([{"score": 2, "model": 1}, {}, {"score": 1}]):
        write_shard(tmp_path, shard, [], notes={"plan": {}, "ignored": ignored})
    assert LeftOut.of(tmp_path, [0, 1]).lines()[1:] == ["ignored keys: score (2 records), model (1 records)"]
    assert LeftOut.of(tmp_path, range(3)).lines()[1:] == ["ignored keys: score (3 records), model (1 records)"]
    assert LeftOut.of(tmp_path, [1]).lines() == ["rejected  0"]
    monkeypatch.setattr("llava_mini.data.inspection.stats._MOST_KEYS", 1)
    assert LeftOut.of(tmp_path, range(3)).lines()[1:] == ["ignored keys: score (3 records), and 1 more"]
