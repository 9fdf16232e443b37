"""A trial measures what it says: time that is spent, memory that is held, a build that is whole."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llava_mini.bench.made_data import MadeData
from llava_mini.bench.processes import fresh
from llava_mini.bench.trials import build, bytes_of_records, cost, memory, verification
from llava_mini.data.format.shard_set import ShardSet


def test_cpu_time_and_waiting_are_told_apart(data: MadeData) -> None:
    def loader(_data: MadeData) -> Iterator[Any]:
        while True:
            end = time.process_time() + 0.008
            while time.process_time() < end:
                pass
            time.sleep(0.016)
            yield None

    found = cost(loader, data, samples=100)
    assert 0.5 <= found.cpu < 0.9, "8 ms for a batch of 16"
    assert found.wall >= 1.5


def growing(_data: MadeData) -> Iterator[Any]:
    for size in (1, 64, 2):
        yield b"x" * (size * 2**20)


def test_memory_is_that_of_the_largest_batch(data: MadeData) -> None:
    found = fresh(memory, growing, data, samples=48)  # as the bench does: other tests leave memory to be used again
    assert 60 < found.peak - found.before < 90


def test_records_of_the_usual_loader_take_kilobytes(data: MadeData, tmp_path: Path) -> None:
    MadeData(tmp_path).records.write_text(json.dumps(json.loads(data.records.read_text()) * 100))
    assert 2000 < fresh(bytes_of_records, MadeData(tmp_path)) < 10_000


def test_a_build_is_measured_whole(data: MadeData, tmp_path: Path) -> None:
    found = build(data, tmp_path / "built")
    assert ShardSet(tmp_path / "built").fingerprint == ShardSet(data.shards).fingerprint
    assert 0 < verification(data) < found.cpu
    assert 80_000 < found.image_bytes < 120_000
    with pytest.raises(RuntimeError, match="status 2"):
        build(MadeData(tmp_path), tmp_path / "nothing")
