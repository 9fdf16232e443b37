"""Which samples are in which batch depends on the plan alone, and bad samples move no other."""

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llava_mini.batch import BadSample, VLMBatch
from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.stream.order import Mixture, SequentialOrder, ShuffledOrder
from llava_mini.data.stream.pixels import PixelTransform
from llava_mini.data.stream.samples import SampleReader
from llava_mini.data.stream.stream import BatchLoader, PlannedStream
from llava_mini.data.text.labels import ConversationTokenizer
from llava_mini.errors import UserError

MakeShards = Callable[..., ShardSet]
MakeMembers = Callable[..., dict[str, bytes]]
MakeReader = Callable[..., SampleReader]
Shuffled = Callable[..., PlannedStream]


@pytest.fixture
def read(make_shards: MakeShards, tokenize: ConversationTokenizer, to_pixels: PixelTransform) -> MakeReader:
    """read(count, {i: members}, name): a reader of samples 00, 01, ..."""

    def make(count: int, changes: dict[int, dict[str, bytes]] | None = None, name: str = "shards") -> SampleReader:
        return SampleReader(make_shards(count, changes, name=name), tokenize, transform=to_pixels)

    return make


@pytest.fixture
def shuffled(read: MakeReader, members: MakeMembers, clip: MakeMembers) -> Shuffled:
    """shuffled(num_batches=9, batch_size=3, ...): a stream over 10 samples, of them one text and one video."""
    reader = read(10, {1: members(1, [("where is the star", "no")], image=False), 7: clip(7, 3)})

    def make(num_batches: int = 9, batch_size: int = 3, rank: int = 0, world_size: int = 1) -> PlannedStream:
        return PlannedStream(
            [reader], ShuffledOrder([reader.shards], 0),
            batch_size=batch_size, num_batches=num_batches, rank=rank, world_size=world_size,
        )  # fmt: skip

    return make


def keys(loader: BatchLoader) -> list[list[str]]:
    return [batch.keys for batch in loader]


def assert_equal(one: VLMBatch, other: VLMBatch) -> None:
    assert (one.keys, one.kinds, one.skipped, one.position) == (other.keys, other.kinds, other.skipped, other.position)
    mine, theirs = one.model_inputs(), other.model_inputs()
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers_gives_the_same_batches(shuffled: Shuffled, workers: int) -> None:
    stream = shuffled()
    alone = list(BatchLoader(stream))
    assert len(alone) == 9
    together = list(BatchLoader(stream, num_workers=workers))
    for one, other in zip(alone, together, strict=True):
        assert_equal(one, other)


def test_spawned_workers_give_the_same_batches(shuffled: Shuffled) -> None:
    """As on systems whose workers are not forked: all that they need can be pickled."""
    stream = shuffled(num_batches=4, rank=1, world_size=2)
    usual = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        for one, other in zip(stream, BatchLoader(stream, num_workers=2), strict=True):
            assert_equal(one, other)
    finally:
        multiprocessing.set_start_method(usual, force=True)


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_any_number_of_ranks_takes_the_same_samples_in_every_step(shuffled: Shuffled, world_size: int) -> None:
    steps = [batch.keys for batch in shuffled(num_batches=5, batch_size=6)]
    ranks = [shuffled(5, 6 // world_size, rank, world_size) for rank in range(world_size)]
    assert {len(BatchLoader(rank)) for rank in ranks} == {5}
    together = [[key for batch in batches for key in batch.keys] for batches in zip(*ranks, strict=True)]
    assert together == steps
    for batches in zip(*ranks, strict=True):
        assert len({batch.position for batch in batches}) == 1


def test_each_sample_comes_once_an_epoch_over_all_ranks(shuffled: Shuffled) -> None:
    ranks = [list(shuffled(num_batches=5, batch_size=3, rank=rank, world_size=2)) for rank in range(2)]
    seen = [key for batches in zip(*ranks, strict=True) for batch in batches for key in batch.keys]
    assert len(seen) == 30
    for epoch in range(3):
        assert sorted(seen[epoch * 10 : epoch * 10 + 10]) == [f"{i:02d}" for i in range(10)]
    assert seen[:10] != seen[10:20]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_can_begin_after_any_batch(shuffled: Shuffled, workers: int) -> None:
    stream = shuffled(num_batches=4, rank=1, world_size=2)
    whole = list(BatchLoader(stream))
    for behind, batch in enumerate(whole, 1):
        loader = BatchLoader(stream, num_workers=workers)
        batches = iter(loader)
        loader.start_position = batch.position  # in time: nobody has asked for a batch yet
        assert [each.keys for each in batches] == [each.keys for each in whole[behind:]]
        assert len(loader) == 4
    assert [batch.position for batch in whole] == [6, 12, 18, 24]


def test_a_pass_that_is_left_early_does_not_shift_the_next(shuffled: Shuffled) -> None:
    loader = BatchLoader(shuffled(num_batches=4), num_workers=1)
    whole = keys(loader)
    next(iter(loader))
    assert keys(loader) == whole


def test_a_start_within_a_batch_is_refused(shuffled: Shuffled) -> None:
    loader = BatchLoader(shuffled(num_batches=4, world_size=2))
    loader.start_position = 3
    with pytest.raises(ValueError, match="position 3 lies within a batch of 6 samples"):
        next(iter(loader))


def test_sets_are_mixed_by_their_order(read: MakeReader) -> None:
    readers = [read(3, name="few"), read(8, name="many")]
    order = Mixture([reader.shards for reader in readers], [1, 3], seed=0)
    stream = PlannedStream(readers, order, batch_size=5, num_batches=3)
    planned = [order(position) for position in range(15)]
    names = ["few", "many"]
    assert [key for batch in stream for key in batch.keys] == [f"{names[s]}/{i:02d}" for s, i in planned]
    assert {source for source, _ in planned} == {0, 1}


def test_keys_of_sets_of_one_name_tell_where_the_sets_lie(read: MakeReader) -> None:
    readers = [read(2, name="a/val"), read(1, name="b/val")]
    batch = PlannedStream(readers, SequentialOrder([reader.shards for reader in readers]), batch_size=3).batch(0)
    folders = [reader.shards.folder for reader in readers]
    assert batch.keys == [f"{folders[0]}/00", f"{folders[0]}/01", f"{folders[1]}/00"]


def test_evaluation_is_one_pass_in_the_order_of_the_shards(read: MakeReader) -> None:
    readers = [read(4, name="one"), read(3, name="other")]
    order = SequentialOrder([reader.shards for reader in readers])
    loader = BatchLoader(PlannedStream(readers, order, batch_size=3), num_workers=2)
    assert len(loader) == 3
    assert keys(loader) == [["one/00", "one/01", "one/02"], ["one/03", "other/00", "other/01"], ["other/02"]]
    assert [batch.position for batch in loader] == [3, 6, 7]


def test_one_pass_of_several_ranks_has_every_sample_once_and_as_many_batches_on_each(read: MakeReader) -> None:
    reader = read(7)
    ranks = [
        PlannedStream([reader], SequentialOrder([reader.shards]), batch_size=2, rank=rank, world_size=3)
        for rank in range(3)
    ]
    found = [keys(BatchLoader(rank)) for rank in ranks]
    # A rank for which nothing is left has a row all the same, so that it comes to every collective operation.
    assert found == [[["00", "01"], ["06"]], [["02", "03"], [""]], [["04", "05"], [""]]]
    filler = ranks[1].batch(1)
    assert (filler.num_supervised(), filler.skipped) == (0, [])


def test_bad_samples_are_rows_without_labels_and_move_no_other(
    read: MakeReader, members: MakeMembers, caplog: pytest.LogCaptureFixture
) -> None:
    bad = {2: {**members(2), "png": b"no image"}, 5: {**members(5), "json": b"{"}}
    reader = read(10, bad)
    order = ShuffledOrder([reader.shards], 0)
    with caplog.at_level(logging.WARNING, "llava_mini.data"):
        batches = list(BatchLoader(PlannedStream([reader], order, batch_size=3, num_batches=9)))
    planned = [[order(b * 3 + i)[1] for i in range(3)] for b in range(9)]
    whole = list(PlannedStream([read(10, name="whole")], order, batch_size=3, num_batches=9))
    for number, (batch, good, indices) in enumerate(zip(batches, whole, planned, strict=True)):
        assert batch.keys == good.keys == [f"{i:02d}" for i in indices]
        assert [each.position for each in batch.skipped] == [number * 3 + i for i in range(3) if indices[i] in bad]
        for row, index in enumerate(indices):
            if index in bad:
                assert (batch.labels[row] == -100).all()
                assert batch.num_frames[row] == 0
            else:
                length = int(good.attention_mask[row].sum())
                assert torch.equal(batch.labels[row, :length], good.labels[row, :length])
    skipped = [each for batch in batches for each in batch.skipped]
    assert {each.key for each in skipped} == {"02", "05"}
    by_key: dict[str, BadSample] = {each.key: each for each in skipped}
    assert by_key["02"].shard == f"{reader.shards.folder}/shard-000000.tar"
    assert "cannot be decoded" in by_key["02"].reason
    assert by_key["05"].shard.endswith("shard-000001.tar")
    assert "not JSON" in by_key["05"].reason
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [f"skipped {each.key} in {each.shard}: {each.reason}" for each in skipped]


def test_of_a_tar_that_was_cut_the_samples_after_the_cut_are_bad(read: MakeReader) -> None:
    reader = read(8)  # four in each of two tars
    shards = reader.shards
    tar = Path(shards.folder) / shards.shard_name(5)
    assert shards.shard_name(4) == tar.name != shards.shard_name(3)
    os.truncate(tar, int(shards.index["offset"][6]) + 100)
    stream = PlannedStream([reader], SequentialOrder([shards]), batch_size=8)
    for workers in (0, 1):
        (batch,) = BatchLoader(stream, num_workers=workers)
        assert batch.keys == [f"{i:02d}" for i in range(8)]
        assert [(bad.key, bad.shard) for bad in batch.skipped] == [("06", str(tar)), ("07", str(tar))]
        assert all("ends too early" in bad.reason for bad in batch.skipped)
        assert batch.num_supervised() == 6


def test_a_batch_of_bad_samples_only_is_a_batch_like_any_other(read: MakeReader, members: MakeMembers) -> None:
    reader = read(6, {i: {**members(i), "json": b""} for i in (2, 3)})
    stream = PlannedStream([reader], SequentialOrder([reader.shards]), batch_size=2)
    batches = list(BatchLoader(stream, num_workers=1))
    assert [batch.keys for batch in batches] == [["00", "01"], ["02", "03"], ["04", "05"]]
    assert [len(batch.skipped) for batch in batches] == [0, 2, 0]
    assert [batch.num_supervised() for batch in batches] == [2, 0, 2]


def test_errors_of_the_program_are_not_taken_for_bad_samples(
    shuffled: Shuffled, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> torch.Tensor:
        raise ZeroDivisionError

    monkeypatch.setattr(PixelTransform, "__call__", broken)
    with pytest.raises(ZeroDivisionError):
        list(shuffled())


def test_the_toy_world_is_streamed(world: Path, tokenize: ConversationTokenizer, to_pixels: PixelTransform) -> None:
    shards = ShardSet(world / "instruct-train")
    reader = SampleReader(shards, tokenize, transform=to_pixels)
    stream = PlannedStream([reader], ShuffledOrder([shards], 0), batch_size=10, num_batches=7)
    batches = list(BatchLoader(stream))
    assert sorted(key for batch in batches for key in batch.keys) == sorted(map(shards.key, range(len(shards))))
    for batch in batches:
        assert batch.turn_ids is not None
        assert (batch.turn_ids.amax(1) == 12).all()
        assert [len(kinds) for kinds in batch.kinds] == [12] * 10
        assert not batch.skipped


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch ends orphans, some seconds later")
def test_workers_die_with_their_parent(make_shards: MakeShards) -> None:
    script = [sys.executable, str(Path(__file__).with_name("loader_process.py")), str(make_shards(8).folder)]
    with subprocess.Popen(script, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [int(number) for number in parent.stdout.readline().split()]
        assert len(workers) == 2
        assert all(alive(number) for number in workers)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 3  # torch's own watch over parents looks every 5 seconds
    while any(alive(number) for number in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not [number for number in workers if alive(number)]


def alive(number: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(("batch_size", "num_batches"), [(0, 1), (1, -1)])
def test_impossible_sizes_are_refused(shuffled: Shuffled, batch_size: int, num_batches: int) -> None:
    with pytest.raises(UserError, match=f"batch_size={batch_size} must be >= 1 and num_batches={num_batches}"):
        shuffled(num_batches, batch_size)
    with pytest.raises(UserError, match="num_workers=-1"):
        BatchLoader(shuffled(), num_workers=-1)
