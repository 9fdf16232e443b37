"""A set that is all index can be opened by several workers, and one that fails is noticed."""

from pathlib import Path

import pytest

from llava_mini.bench.large_set import make_large_set, open_large_set
from llava_mini.data.format.shard_set import ShardSet
from llava_mini.errors import UserError


def test_a_large_set_is_opened_by_all_workers(tmp_path: Path) -> None:
    make_large_set(tmp_path / "large", 3500)
    shards = ShardSet(tmp_path / "large")
    assert (len(shards), shards.num_shards, shards.key(3499), shards.frames(0)) == (3500, 4, "000003499", 1)
    found = open_large_set(tmp_path / "large", workers=2)
    assert len(found) == 2
    assert all(each.seconds > 0 and -1 < each.private < 50 for each in found)


def test_a_worker_that_fails_ends_the_trial(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=str(tmp_path)):
        open_large_set(tmp_path, workers=1)
