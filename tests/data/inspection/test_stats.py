"""Statistics are those of the samples; most come from the index, turns from the records."""

from collections.abc import Callable

import numpy as np
import pytest

from llava_mini.data.format.index import Modality
from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.inspection.stats import Distribution, statistics, statistics_lines

MakeRecord = Callable[..., dict[str, bytes]]
MakeShards = Callable[..., ShardSet]


@pytest.fixture
def shards(make_shards: MakeShards, members: MakeRecord, clip: MakeRecord) -> ShardSet:
    """Ten samples: two videos, two of text (one whose record is broken), six with an image and two turns."""
    talk = [("how many", "a" * 100)] * 5
    return make_shards(
        10,
        {
            2: clip(2, frames=3),
            3: clip(3, frames=9),
            4: members(4, talk, image=False, source="texts"),
            5: {"json": b"{"},
        },
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_statistics_of_a_set(shards: ShardSet, workers: int) -> None:
    found = statistics(shards, workers)
    assert (found.turns.values.tolist(), found.turns.counts.tolist()) == ([1, 2, 5], [2, 6, 1])
    assert (found.frames.values.tolist(), found.images.values.tolist()) == ([3, 9], [1])
    assert len(found.images) == 6
    text = found.text[Modality.TEXT]
    assert (text.values.tolist(), text.counts.tolist()) == ([0, 5 * 108], [1, 1])
    assert len(found.text[Modality.IMAGE]) == 6 and len(found.text[Modality.VIDEO]) == 2


def test_lines_hold_counts_and_lengths(shards: ShardSet) -> None:
    lines = statistics_lines(shards, statistics(shards))
    assert "10 samples in 3 shards, " in lines[0] and f"fingerprint {shards.fingerprint}, 0 records" in lines[1]
    rows = {" ".join(line.split()[:-5]): line.split()[-5:] for line in lines[-6:]}
    assert rows["turns"] == ["9", "1", "2", "5", "5"]
    assert rows["characters (text)"] == ["2", "0", "0", "540", "540"]
    assert rows["images of a sample"] == ["6", "1", "1", "1", "1"]
    assert rows["frames of a video"] == ["2", "3", "3", "9", "9"]
    assert any(line.split()[:2] == ["texts", "1"] for line in lines)


def test_quantiles_are_values_that_occur() -> None:
    values = np.random.default_rng(0).integers(0, 50, 1001)
    found = Distribution.of(values)
    for share in (0.0, 0.05, 0.5, 0.95, 1.0):
        assert found.quantile(share) == np.quantile(values, share, method="inverted_cdf")
    assert len(found) == 1001
    assert Distribution.of(np.array([7], np.uint32)).quantile(0.95) == 7
