"""The order of batches is the same for any number of workers and from any point on, and bad samples move no other."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from llava_mini.batch import VLMBatch
from llava_mini.data.labels import ConversationTokenizer
from llava_mini.data.samples import SampleReader
from llava_mini.data.shards import ShardSet
from llava_mini.data.stream import BatchLoader, PlannedStream, SequentialOrder, ShuffledOrder
from llava_mini.errors import UserError
from llava_mini.views import ImageTransform

MakeShards = Callable[..., ShardSet]
MakeMembers = Callable[..., dict[str, bytes]]
Shuffled = Callable[..., PlannedStream]


@pytest.fixture
def shuffled(make_shards: MakeShards, tokenize: ConversationTokenizer, transform: ImageTransform) -> Shuffled:
    """shuffled(num_batches=9, batch_size=3, seed=0, changes): a stream over 10 samples."""

    def make(
        num_batches: int = 9, batch_size: int = 3, seed: int = 0, changes: dict[int, dict[str, bytes]] | None = None
    ) -> PlannedStream:
        shards = make_shards(10, changes, name=f"{num_batches}-{batch_size}-{seed}-{len(changes or {})}")
        reader = SampleReader(shards, tokenize, transform=transform)
        order = ShuffledOrder(len(shards), shards.fingerprint, seed)
        return PlannedStream(reader, order, batch_size=batch_size, num_batches=num_batches)

    return make


def keys(loader: BatchLoader) -> list[list[str]]:
    return [batch.keys for batch in loader]


def assert_equal(one: VLMBatch, other: VLMBatch) -> None:
    assert (one.keys, one.kinds, one.skipped) == (other.keys, other.kinds, other.skipped)
    mine, theirs = one.model_inputs(), other.model_inputs()
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("count", [1, 31, 32, 33, 5000])
def test_every_epoch_has_every_sample_once(count: int) -> None:
    order = ShuffledOrder(count, "content", seed=3)
    for epoch in (0, 1, 7):
        found = [order(epoch * count + place) for place in range(count)]
        assert sorted(found) == list(range(count))


def test_the_order_depends_on_epoch_seed_and_content_only() -> None:
    first = ShuffledOrder(200, "content", 0)
    assert [first(i) for i in (399, 5, 250, 5)] == [ShuffledOrder(200, "content", 0)(i) for i in (399, 5, 250, 5)]
    others = [first.epoch(1), ShuffledOrder(200, "content", 1).epoch(0), ShuffledOrder(200, "changed", 0).epoch(0)]
    for other in others:
        assert (first.epoch(0) != other).mean() > 0.9


def test_an_epoch_is_well_mixed() -> None:
    order = ShuffledOrder(6000, "content", 0).epoch(0)
    places = np.argsort(order)
    # Neighbours in the shards are spread over a window of 2048, and the ends of the data are mixed.
    assert np.abs(np.diff(places)).mean() > 500
    assert abs(np.corrcoef(np.arange(6000), places)[0, 1]) < 0.2


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers_gives_the_same_batches(shuffled: Shuffled, workers: int) -> None:
    stream = shuffled()
    alone = list(BatchLoader(stream))
    assert len(alone) == 9
    together = list(BatchLoader(stream, num_workers=workers))
    for one, other in zip(alone, together, strict=True):
        assert_equal(one, other)


def test_batches_pass_from_one_epoch_to_the_next(shuffled: Shuffled) -> None:
    seen = [key for batch in keys(BatchLoader(shuffled(num_batches=10))) for key in batch]
    assert len(seen) == 30
    for epoch in range(3):
        assert sorted(seen[epoch * 10 : epoch * 10 + 10]) == [f"{i:02d}" for i in range(10)]
    assert seen[:10] != seen[10:20]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_can_be_resumed_at_any_batch(shuffled: Shuffled, workers: int) -> None:
    stream = shuffled(num_batches=5)
    whole = keys(BatchLoader(stream))
    for stop in range(1, 6):
        loader = BatchLoader(stream, num_workers=workers)
        batches = iter(loader)
        for _ in range(stop):
            next(batches)
        state = loader.state_dict()  # workers are ahead of it by now
        resumed = BatchLoader(stream, num_workers=2 - workers)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert keys(resumed) == whole[stop:]
        assert len(resumed) == 5
        assert keys(resumed) == whole, "only the first pass goes on"


def test_a_pass_that_is_left_early_does_not_shift_the_next(shuffled: Shuffled) -> None:
    loader = BatchLoader(shuffled(num_batches=4))
    whole = keys(loader)
    next(iter(loader))
    assert keys(loader) == whole


def test_a_state_of_another_plan_is_refused(shuffled: Shuffled) -> None:
    state = BatchLoader(shuffled(num_batches=4)).state_dict()
    BatchLoader(shuffled(num_batches=8)).load_state_dict(state)  # a longer run of the same plan
    for other in (shuffled(seed=1), shuffled(batch_size=2)):
        with pytest.raises(UserError, match="other data, data seed or batch size"):
            BatchLoader(other).load_state_dict(state)


def test_evaluation_is_one_pass_in_the_order_of_the_shards(
    make_shards: MakeShards, tokenize: ConversationTokenizer, transform: ImageTransform
) -> None:
    reader = SampleReader(make_shards(7), tokenize, transform=transform)
    loader = BatchLoader(PlannedStream(reader, SequentialOrder(), batch_size=3), num_workers=2)
    assert len(loader) == 3
    assert keys(loader) == [["00", "01", "02"], ["03", "04", "05"], ["06"]]


def test_bad_samples_are_counted_logged_and_move_no_other(
    shuffled: Shuffled, members: MakeMembers, caplog: pytest.LogCaptureFixture
) -> None:
    bad = {2: {**members(2), "png": b"no image"}, 5: {**members(5), "json": b"{"}}
    stream = shuffled(changes=bad)
    with caplog.at_level(logging.WARNING, "llava_mini.data"):
        batches = list(BatchLoader(stream))
    whole = [[f"{stream.order(b * 3 + i):02d}" for i in range(3)] for b in range(9)]
    assert [batch.keys for batch in batches] == [[key for key in each if key not in ("02", "05")] for each in whole]
    for batch, planned in zip(batches, whole, strict=True):
        assert [text.split(":")[0] for text in batch.skipped] == [key for key in planned if key in ("02", "05")]
        assert len(batch) == len(batch.keys) == 3 - len(batch.skipped)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == sum(len(batch.skipped) for batch in batches) > 0
    assert any("02" in text and "shard-000000.tar" in text and "cannot be decoded" in text for text in messages)
    assert any("05" in text and "shard-000001.tar" in text and "not a LLaVA record" in text for text in messages)


def test_a_batch_of_bad_samples_only_is_empty_and_the_stream_goes_on(
    make_shards: MakeShards, members: MakeMembers, tokenize: ConversationTokenizer, transform: ImageTransform
) -> None:
    bad = {i: {**members(i), "json": b""} for i in (2, 3)}
    reader = SampleReader(make_shards(6, bad), tokenize, transform=transform)
    batches = list(BatchLoader(PlannedStream(reader, SequentialOrder(), batch_size=2), num_workers=1))
    assert [batch.keys for batch in batches] == [["00", "01"], [], ["04", "05"]]
    assert [len(batch.skipped) for batch in batches] == [0, 2, 0]


def test_errors_of_the_program_are_not_taken_for_bad_samples(shuffled: Shuffled) -> None:
    stream = shuffled()

    class Broken(ImageTransform):
        def __call__(self, image: object) -> torch.Tensor:
            raise ZeroDivisionError

    assert stream.reader.transform is not None
    stream.reader.transform = Broken(stream.reader.transform.processor)
    with pytest.raises(ZeroDivisionError):
        next(iter(stream))


def test_the_toy_world_is_streamed(world: Path, tokenize: ConversationTokenizer, transform: ImageTransform) -> None:
    shards = ShardSet(world / "instruct-train")
    reader = SampleReader(shards, tokenize, transform=transform)
    order = ShuffledOrder(len(shards), shards.fingerprint, 0)
    batches = list(BatchLoader(PlannedStream(reader, order, batch_size=10, num_batches=7)))
    assert sorted(key for batch in batches for key in batch.keys) == sorted(map(shards.key, range(len(shards))))
    for batch in batches:
        assert batch.turn_ids is not None
        assert (batch.turn_ids.amax(1) == 12).all()
        assert [len(kinds) for kinds in batch.kinds] == [12] * 10
        assert not batch.skipped


@pytest.mark.parametrize(("batch_size", "num_batches"), [(0, 1), (1, -1)])
def test_impossible_sizes_are_refused(shuffled: Shuffled, batch_size: int, num_batches: int) -> None:
    stream = shuffled()
    with pytest.raises(UserError, match=f"batch_size={batch_size} must be >= 1 and num_batches={num_batches}"):
        PlannedStream(stream.reader, stream.order, batch_size=batch_size, num_batches=num_batches)
    with pytest.raises(UserError, match="num_workers=-1"):
        BatchLoader(stream, num_workers=-1)
