"""An order is a pure function of content, seed and position: each sample once an epoch, exact shares, little memory."""

import pickle
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest

from llava_mini.data.stream.order import Mixture, Order, SequentialOrder, ShuffledOrder, exact_quotas
from llava_mini.errors import UserError


@dataclass
class Samples:
    """A set of so many samples."""

    size: int
    fingerprint: str = "content"

    def __len__(self) -> int:
        return self.size


def places(order: Order, start: int, stop: int) -> list[tuple[int, int]]:
    return [order(position) for position in range(start, stop)]


def epoch(size: int, number: int = 0, seed: int = 0, content: str = "content") -> list[int]:
    order = ShuffledOrder([Samples(size, content)], seed)
    return [index for _, index in places(order, number * size, (number + 1) * size)]


MAKERS: dict[str, Callable[[int], Order]] = {
    "shuffled": lambda seed: ShuffledOrder([Samples(5000)], seed),
    "pool": lambda seed: ShuffledOrder([Samples(40), Samples(1), Samples(3000, "other")], seed),
    "mixture": lambda seed: Mixture([Samples(40), Samples(3000, "other"), Samples(7)], [0.55, 0.3, 0.15], seed),
}


@pytest.mark.parametrize("size", [1, 2, 31, 32, 33, 2047, 2048, 2049, 5000])
def test_every_epoch_has_every_sample_once_and_differs(size: int):
    epochs = [epoch(size, number) for number in (0, 1, 2, 50)]
    for each in epochs:
        assert sorted(each) == list(range(size))
    if size > 30:
        assert len({tuple(each) for each in epochs}) == len(epochs)


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_any_position_can_be_asked_for_at_any_time(kind: str):
    in_turn = places(MAKERS[kind](0), 0, 12_000)
    order = MAKERS[kind](0)
    for position in np.random.default_rng(0).integers(0, 12_000, 500).tolist():
        assert order(position) == in_turn[position]
    assert pickle.loads(pickle.dumps(order))(7) == in_turn[7]  # as it travels to a spawned worker


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_seeds_differ_and_so_do_their_fingerprints(kind: str):
    first, again, other = (MAKERS[kind](seed) for seed in (0, 0, 1))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    same = np.mean([one == two for one, two in zip(places(first, 0, 2000), places(other, 0, 2000), strict=True)])
    assert same < 0.1


def test_content_changes_order_and_fingerprint():
    assert np.mean(np.array(epoch(2000)) == np.array(epoch(2000, content="changed"))) < 0.01
    sets = ([Samples(5), Samples(6)], [Samples(6), Samples(5)], [Samples(11)], [Samples(5), Samples(6, "changed")])
    assert len({ShuffledOrder(each, 0).fingerprint for each in sets}) == 4
    assert len({SequentialOrder(each).fingerprint for each in sets}) == 4
    mixed = [Mixture(sets[0], weights, 0).fingerprint for weights in ([1, 1], [2, 2], [2, 1])]
    assert mixed[0] == mixed[1] != mixed[2]


def test_an_epoch_is_well_mixed():
    found = np.argsort(epoch(6000))
    # Neighbors in the shards are spread over a window of 2048, and the ends of the data are mixed.
    assert np.abs(np.diff(found)).mean() > 500
    assert abs(np.corrcoef(np.arange(6000), found)[0, 1]) < 0.2


def test_a_window_holds_whole_blocks_so_that_reading_stays_nearly_sequential():
    window = np.sort(epoch(100_000)[:2048])
    assert (np.diff(window) == 1).mean() > 0.9


def neighbors(window: list[int]) -> set[tuple[int, int]]:
    """Where in a window samples stand that lie beside each other in the shards."""
    place = {sample: i for i, sample in enumerate(window)}
    return {(i, place[sample + 1]) for sample, i in place.items() if sample + 1 in place}


def test_every_window_is_mixed_in_its_own_way():
    found = epoch(100_000)
    one, other = neighbors(found[:2048]), neighbors(found[2048:4096])
    assert len(one & other) < 0.05 * len(one)


SHUFFLED = [3991, 3292, 4182, 4533, 4762, 2440, 4552, 2661, 3635, 4991, 3127, 3511]
MIXED = [(0, 32), (0, 14), (0, 37), (0, 16), (0, 30), (0, 39), (0, 3), (0, 34), (1, 0), (0, 42)]


def test_the_order_is_the_same_in_every_version():
    # A run that was begun with another version must go on in the order that it began with.
    assert epoch(5000, number=3, seed=7)[2100:2112] == SHUFFLED
    order = Mixture([Samples(50), Samples(9, "other")], [3, 1], seed=7)
    assert places(order, 5000, 5010) == MIXED


def test_a_pool_is_one_set_in_which_each_sample_has_the_same_chance():
    sizes = [100, 1, 3000]
    order = ShuffledOrder([Samples(size, str(size)) for size in sizes], 0)
    for number in range(2):
        found = places(order, number * 3101, (number + 1) * 3101)
        assert sorted(found) == [(source, i) for source, size in enumerate(sizes) for i in range(size)]
    # Of the first half of an epoch, each set has about its share (whole blocks of the small set move together).
    share = Counter(source for source, _ in places(order, 0, 1550))
    assert share[2] > 1400


def test_a_mixture_has_exact_shares_in_every_period():
    order = Mixture([Samples(40), Samples(3000, "other"), Samples(7)], [0.555, 0.3, 0.145], 0)
    assert order.quotas == [555, 300, 145]
    periods = [places(order, 1000 * number, 1000 * (number + 1)) for number in range(4)]
    for period in periods:
        assert Counter(source for source, _ in period) == {0: 555, 1: 300, 2: 145}
    orders = [[source for source, _ in period] for period in periods]
    assert all(one != two for one, two in pairwise(orders))
    # The sets are mixed, not one after another: of 100 places each has about its share.
    assert 35 <= Counter(orders[0][:100])[0] <= 75


def test_each_set_of_a_mixture_goes_through_its_own_epochs():
    sizes = [40, 3000, 7]
    order = Mixture([Samples(size, str(size)) for size in sizes], [0.555, 0.3, 0.145], 0)
    found = places(order, 0, 11_000)
    for source, size in enumerate(sizes):
        indices = [index for number, index in found if number == source]
        whole = len(indices) // size
        assert whole >= 1
        for start in range(0, whole * size, size):
            assert sorted(indices[start : start + size]) == list(range(size))


@pytest.mark.parametrize(
    ("weights", "quotas"),
    [
        ([1.0], [1000]),
        ([1, 1, 1], [334, 333, 333]),
        ([0.1, 0.2, 0.7], [100, 200, 700]),
        ([1, 999], [1, 999]),
        ([2, 3, 1], [333, 500, 167]),
        ([0.7, 499.65, 499.65], [1, 500, 499]),
    ],
)
def test_shares_are_rounded_by_largest_remainder(weights: list[float], quotas: list[int]):
    assert exact_quotas(weights) == quotas
    assert exact_quotas([weight * 0.37 for weight in weights]) == quotas


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([3, 0.001, 1], "weight 0.001 of a mixture gets no place among 1000; allowed are weights from 0.004001"),
        ([1, 0], "weight 0 of a mixture; allowed are numbers > 0"),
        ([-1, 2], "weight -1 of a mixture"),
        ([float("nan"), 1], "weight nan of a mixture"),
        ([float("inf"), 1], "weight inf of a mixture"),
    ],
)
def test_impossible_weights_are_named(weights: list[float], message: str):
    with pytest.raises(UserError, match=message):
        Mixture([Samples(3)] * len(weights), weights, 0)


def test_an_empty_set_cannot_be_trained_on():
    for make in (lambda: ShuffledOrder([Samples(0)], 0), lambda: Mixture([Samples(3), Samples(0)], [1, 1], 0)):
        with pytest.raises(UserError, match="a set without a sample cannot be trained on"):
            make()


def test_one_pass_takes_the_sets_one_after_another():
    order = SequentialOrder([Samples(2), Samples(1), Samples(3)])
    assert places(order, 0, 6) == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (2, 2)]


def test_three_million_samples_need_no_array_of_that_length():
    tracemalloc.start()
    order = ShuffledOrder([Samples(3_000_000)], 0)
    for position in range(0, 3_000_000, 250_000):
        order(position)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 2e6
    assert peak < 8e6  # 3 million numbers would be 24 MB
