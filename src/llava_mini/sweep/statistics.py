"""Accuracies with 95 % intervals, by a bootstrap over scenes and seeds.

Questions about one scene stand or fall together, so whole scenes are resampled, not questions; where several seeds
were run, seeds are resampled too. Every run sees the same resampled scenes and every configuration the same resampled
seeds, which makes a difference of two of them a paired one.

Letters in names: B resamples, S scenes, R runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llava_mini.predictions import Predictions

Floats = NDArray[np.float64]

RESAMPLES = 4000
_WEIGHTS_AT_ONCE = 4_000_000  # numbers, to bound memory for large test sets


@dataclass(frozen=True)
class Interval:
    """A measured value and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Interval):
    """A paired difference of two accuracies: its interval, and its value for each common seed."""

    by_seed: dict[int, float] = field(default_factory=dict)

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


class Bootstrap:
    """Resampled accuracies of all runs of a comparison.

    Args:
        predictions: of every run, on one test set.
        resamples: B.
        seed: of the resampling; the same seed gives the same intervals.
    """

    def __init__(self, predictions: Sequence[Predictions], resamples: int = RESAMPLES, seed: int = 0) -> None:
        self._resamples, self._seed = resamples, seed
        right_SR, asked_SR = scene_counts(predictions)
        self._observed_R: Floats = right_SR.sum(0) / asked_SR.sum(0)
        self._resampled_BR = np.concatenate(
            [
                weights_BS @ right_SR / np.maximum(weights_BS @ asked_SR, 1)
                for weights_BS in scene_weights(len(right_SR), resamples, seed)
            ]
        )

    def run(self, run: int) -> Interval:
        """Accuracy of one run; only scenes are resampled."""
        return _interval(float(self._observed_R[run]), self._resampled_BR[:, run])

    def mean(self, runs_by_seed: Mapping[int, int]) -> Interval:
        """Mean accuracy over seeds.

        Args:
            runs_by_seed: seed -> index of the run.
        """
        columns = [run for _, run in sorted(runs_by_seed.items())]
        return _interval(float(self._observed_R[columns].mean()), self._over_seeds(self._resampled_BR[:, columns]))

    def difference(self, runs_by_seed: Mapping[int, int], others_by_seed: Mapping[int, int]) -> Difference | None:
        """Mean over common seeds of one configuration's accuracy less another's; None without a common seed."""
        seeds = sorted(runs_by_seed.keys() & others_by_seed.keys())
        if not seeds:
            return None
        ours, theirs = [runs_by_seed[seed] for seed in seeds], [others_by_seed[seed] for seed in seeds]
        by_seed = self._observed_R[ours] - self._observed_R[theirs]
        interval = _interval(
            float(by_seed.mean()), self._over_seeds(self._resampled_BR[:, ours] - self._resampled_BR[:, theirs])
        )
        return Difference(
            interval.value, interval.low, interval.high, dict(zip(seeds, map(float, by_seed), strict=True))
        )

    def _over_seeds(self, values_BR: Floats) -> Floats:
        """[B] means over seeds that are resampled alike for any two configurations with the same seeds."""
        count = values_BR.shape[1]
        chosen_BR = np.random.default_rng([self._seed, count]).integers(count, size=(self._resamples, count))
        return np.take_along_axis(values_BR, chosen_BR, axis=1).mean(1)


def scene_counts(predictions: Sequence[Predictions]) -> tuple[Floats, Floats]:
    """Right answers and questions, [S, R] each; a run that misses a scene has 0 questions there."""
    scenes = np.unique(np.concatenate([run.key for run in predictions]))
    right_SR, asked_SR = np.zeros((len(scenes), len(predictions))), np.zeros((len(scenes), len(predictions)))
    for column, run in enumerate(predictions):
        index = np.searchsorted(scenes, run.key)
        right_SR[:, column] = np.bincount(index, weights=run.correct, minlength=len(scenes))
        asked_SR[:, column] = np.bincount(index, minlength=len(scenes))
    return right_SR, asked_SR


def scene_weights(scenes: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each scene is drawn in each resample: blocks of [B', S] that make up [B, S]."""
    rng = np.random.default_rng(seed)
    block = max(1, _WEIGHTS_AT_ONCE // scenes)
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    for size in sizes:
        yield rng.multinomial(scenes, np.full(scenes, 1 / scenes), size=size).astype(np.float64)


def _interval(value: float, resampled_B: Floats) -> Interval:
    low, high = np.quantile(resampled_B, [0.025, 0.975])
    return Interval(value, float(low), float(high))
