"""Maps a position to a sample: a pure function of (content, seed, position), whatever was requested before.

Positions count endlessly, through as many epochs as a run lasts. An epoch permutes blocks of 32 neighboring samples, so
reading stays nearly sequential on slow disks, and then shuffles the samples within every window of 64 blocks. Only the
blocks of an epoch and a few windows are in memory: 3 million samples need about a megabyte.

All randomness is the raw output of Philox, with content, seed and epoch in its key and the window in its counter. numpy
guarantees that this output never changes, unlike the results of its shuffle functions, so a run can be resumed with
another version of numpy.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from llava_mini.errors import UserError

BLOCK = 32  # samples that are adjacent in a shard and move together
WINDOW = 64  # blocks whose samples are then shuffled
PERIOD = 1000  # positions in which every set of a mixture has its exact share

_KEPT = 4  # windows or periods in memory: consecutive batches use one or two at a time

Key = TypeVar("Key")
Value = TypeVar("Value")


class SampleSet(Protocol):
    """What an order needs to know about a shard set."""

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...


class Order(Protocol):
    """Map from a position to a sample: (number of its set, number in its set)."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint that is equal for orders that give the same samples."""

    def __call__(self, position: int) -> tuple[int, int]: ...


class SequentialOrder:
    """Order of one set after another as they are stored, for evaluation."""

    def __init__(self, sets: Sequence[SampleSet]) -> None:
        self.fingerprint = _fingerprint("sequential", sets)
        self._ends = list(accumulate(len(each) for each in sets))

    def __call__(self, position: int) -> tuple[int, int]:
        return _located(self._ends, position)


class ShuffledOrder:
    """Order of endless epochs over one set, or over several as if they were one; each epoch has every sample once.

    Raises:
        UserError: All sets are empty.
    """

    def __init__(self, sets: Sequence[SampleSet], seed: int) -> None:
        self.fingerprint = _fingerprint(f"shuffled {seed} {BLOCK} {WINDOW}", sets)
        self._ends = list(accumulate(len(each) for each in sets))
        self._shuffle = _Shuffle(self._ends[-1], self.fingerprint)

    def __call__(self, position: int) -> tuple[int, int]:
        return _located(self._ends, self._shuffle(position))


class Mixture:
    """Order of several sets by weight: every 1000 positions, counted from 0, have a fixed number of samples of each.

    The order of the sets within the 1000 positions is random, and each set goes through its own epochs. The weights may
    have any sum; the shares are rounded to whole samples by largest remainder.

    Raises:
        UserError: A set is empty, or a weight is impossible or too small to get a place.
    """

    def __init__(self, sets: Sequence[SampleSet], weights: Sequence[float], seed: int) -> None:
        self.quotas = exact_quotas(weights)
        self.fingerprint = _fingerprint(f"mixture {seed} {BLOCK} {WINDOW} {PERIOD} {self.quotas}", sets)
        self._key = _key(self.fingerprint)
        self._shuffles = [_Shuffle(len(each), f"{self.fingerprint} {number}") for number, each in enumerate(sets)]
        self._dealt = _Recent(self._deal)

    def __call__(self, position: int) -> tuple[int, int]:
        period, place = divmod(position, PERIOD)
        sources, ranks = self._dealt(period)
        source = int(sources[place])
        return source, self._shuffles[source](period * self.quotas[source] + int(ranks[place]))

    def _deal(self, period: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the set at each place of a period, and how many samples of that set come before it in the period."""
        sources = np.repeat(np.arange(len(self.quotas)), self.quotas)[_permutation(PERIOD, self._key, period)]
        ranks = np.empty_like(sources)
        for source, quota in enumerate(self.quotas):
            ranks[sources == source] = np.arange(quota)
        return sources, ranks


def exact_quotas(weights: Sequence[float]) -> list[int]:
    """Return the number of places of each weight in a period: integers that add up to it, by largest remainder.

    Raises:
        UserError: A weight is not a positive number, or so small that it gets no place.
    """
    for weight in weights:
        if not (math.isfinite(weight) and weight > 0):
            allowed = "numbers > 0"
            raise UserError(
                f"weight {weight} of a mixture; allowed are {allowed}", key="weights", value=weight, allowed=allowed
            )
    shares = [PERIOD * weight / math.fsum(weights) for weight in weights]
    quotas = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: quotas[i] - shares[i])
    for i in by_remainder[: PERIOD - sum(quotas)]:
        quotas[i] += 1
    if 0 in quotas:
        weight = weights[quotas.index(0)]
        allowed = f"weights from {math.fsum(weights) / PERIOD:g}, 1/{PERIOD} of the sum"
        why = f"weight {weight} of a mixture gets no place among {PERIOD}; allowed are {allowed}"
        raise UserError(why, key="weights", value=weight, allowed=allowed)
    return quotas


def permutation(size: int, name: str) -> NDArray[np.int64]:
    """Return the numbers below `size` in an order that depends on the name alone."""
    return _permutation(size, _key(name), epoch=0)


class _Shuffle:
    """Endless shuffled epochs over the numbers below `size`."""

    def __init__(self, size: int, name: str) -> None:
        if size < 1:
            raise UserError("a set without a sample cannot be trained on", key="size", value=size)
        self.size, self._key = size, _key(name)
        self._blocks, self._window = _Recent(self._permute_blocks), _Recent(self._mix_window)

    def __call__(self, position: int) -> int:
        epoch, place = divmod(position, self.size)
        window, offset = divmod(place, BLOCK * WINDOW)
        return int(self._window((epoch, window))[offset])

    def _permute_blocks(self, epoch: int) -> tuple[NDArray[np.int64], int]:
        """Return the blocks of an epoch in order, and the sample at which its first block starts.

        The start moves, so blocks differ from epoch to epoch, and so does the short block, which comes last.
        """
        whole, rest = divmod(self.size, BLOCK)
        blocks = _permutation(whole, self._key, epoch)
        start = int(_bits(1, self._key, epoch, stream=1)[0] % self.size)
        return np.append(blocks, whole) if rest else blocks, start

    def _mix_window(self, key: tuple[int, int]) -> NDArray[np.int64]:
        """Return the samples of a window in order."""
        epoch, window = key
        blocks, start = self._blocks(epoch)
        chosen = blocks[window * WINDOW : (window + 1) * WINDOW]
        samples = (chosen[:, None] * BLOCK + np.arange(BLOCK)).ravel()
        samples = (samples[samples < self.size] + start) % self.size
        return samples[_permutation(len(samples), self._key, epoch, stream=window + 2)]


class _Recent(Generic[Key, Value]):
    """A function that caches its few most recently requested values."""

    def __init__(self, make: Callable[[Key], Value]) -> None:
        self._make = make
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def __call__(self, key: Key) -> Value:
        if key not in self._values:
            self._values[key] = self._make(key)
            if len(self._values) > _KEPT:
                self._values.popitem(last=False)
        self._values.move_to_end(key)
        return self._values[key]


def _permutation(size: int, key: int, epoch: int, stream: int = 0) -> NDArray[np.int64]:
    """Return the numbers below `size` in random order."""
    return np.argsort(_bits(size, key, epoch, stream), kind="stable")


def _bits(size: int, key: int, epoch: int, stream: int) -> NDArray[np.uint64]:
    """Return random 64-bit numbers; other keys, epochs and streams give other numbers."""
    return np.random.Philox(key=[key, epoch], counter=[0, 0, 0, stream]).random_raw(size)


def _located(ends: list[int], number: int) -> tuple[int, int]:
    """Return the set, and the number in it, of a number in the concatenation of sets that end at `ends`."""
    source = bisect_right(ends, number)
    return source, number - (ends[source - 1] if source else 0)


def _fingerprint(name: str, sets: Sequence[SampleSet]) -> str:
    contents = " ".join(f"{each.fingerprint} {len(each)}" for each in sets)
    return hashlib.sha256(f"{name} {contents}".encode()).hexdigest()


def _key(name: str) -> int:
    return int(hashlib.sha256(name.encode()).hexdigest()[:16], 16)
