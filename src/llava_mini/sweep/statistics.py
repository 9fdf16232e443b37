"""Headline scores with 95 % intervals, and differences between them that are paired by seed and by scene.

Two things vary: seeds (what else training could have led to) and scenes (what else could have been asked; questions
about one scene are not independent). For n seeds the variance of a mean is V_seed + V_scene: the sample variance over
seeds, divided by n, and the variance over scenes of the mean over seeds, from each scene's influence on the score (the
delta method, clustered by scene). Margins are Student's t with the degrees of freedom of Welch and Satterthwaite. They
are never below the margins of the seeds alone; a few seeds that happen to agree would otherwise give smaller ones. With
3 to 8 seeds such an interval contains the truth 94 to 99 times out of 100 (tests/sweep/test_statistics.py); below 3
seeds there is none.

Letters in names: S scenes, R runs, N seeds.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from llava_mini.predictions import Predictions

Floats = NDArray[np.float64]
Key = TypeVar("Key", bound=Hashable)

FEWEST_SEEDS = 3  # with fewer, the variance over seeds is not known well enough for any claim
CLEAR = 0.05  # highest corrected p-value of a difference that is called clear
_UPPER = 0.975


@dataclass(frozen=True)
class Estimate:
    """Measured value and its 95 % interval, which is None if there are too few seeds or scenes for one."""

    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Difference(Estimate):
    """Paired difference of two scores."""

    by_seed: dict[int, float] = field(default_factory=dict)  # of the common seeds
    p: float | None = None  # two-sided, of no difference; None where there is no interval
    corrected_p: float | None = None  # after `corrected`

    @property
    def clear(self) -> bool:
        """Whether it may be called a difference, after correction for all differences that were tested with it."""
        return self.corrected_p is not None and self.corrected_p < CLEAR


class Scores:
    """One score of all runs of a comparison: its value, and what each scene contributes to it.

    Args:
        value_R: Score of each run, the mean over its kinds; NaN for a run without any of them.
        influence_SR: Amount by which each scene moves that score; sums to 0 over scenes.
        asked_SR: Whether the run was asked about the scene.
    """

    def __init__(self, value_R: Floats, influence_SR: Floats, asked_SR: NDArray[np.bool_]) -> None:
        self._value_R, self._influence_SR, self._asked_SR = value_R, influence_SR, asked_SR

    def known(self, run: int) -> bool:
        """Whether the run has the score."""
        return not math.isnan(self._value_R[run])

    def run(self, run: int) -> Estimate:
        """Score of one run. Its interval covers what other scenes would change, not what another seed would."""
        scenes = int(self._asked_SR[:, run].sum())
        value = float(self._value_R[run])
        if scenes < 2:
            return Estimate(value)
        margin = float(stdtrit(scenes - 1, _UPPER)) * math.sqrt(_over_scenes(self._influence_SR[:, run], scenes))
        return Estimate(value, _within_shares(value, margin))

    def mean(self, runs_by_seed: Mapping[int, int]) -> Estimate:
        """Mean of the score over seeds, at least one."""
        columns = list(runs_by_seed.values())
        value = float(self._value_R[columns].mean())
        margin, _ = _margin_and_p(self._value_R[columns], self._influence_SR[:, columns], self._scenes(columns))
        return Estimate(value, None if margin is None else _within_shares(value, margin))

    def difference(self, runs_by_seed: Mapping[int, int], others_by_seed: Mapping[int, int]) -> Difference | None:
        """Mean over common seeds of one configuration's score minus another's; None without a common seed."""
        seeds = sorted(runs_by_seed.keys() & others_by_seed.keys())
        if not seeds:
            return None
        ours, theirs = [runs_by_seed[seed] for seed in seeds], [others_by_seed[seed] for seed in seeds]
        values_N = self._value_R[ours] - self._value_R[theirs]
        influence_SN = self._influence_SR[:, ours] - self._influence_SR[:, theirs]
        margin, p = _margin_and_p(values_N, influence_SN, self._scenes([*ours, *theirs]))
        value = float(values_N.mean())
        interval = None if margin is None else (value - margin, value + margin)
        return Difference(value, interval, dict(zip(seeds, map(float, values_N), strict=True)), p)

    def _scenes(self, columns: Sequence[int]) -> int:
        return int(self._asked_SR[:, columns].any(1).sum())


class Answers:
    """Answers of all runs of a comparison, matched by scene; keys of different test sets must differ."""

    def __init__(self, predictions: Sequence[Predictions]) -> None:
        self._predictions = predictions
        scenes = np.unique(np.concatenate([np.unique(run.key) for run in predictions]))
        self._scene_of = [np.searchsorted(scenes, run.key) for run in predictions]
        self._scenes = len(scenes)

    def scores(self, score: str, kinds: Sequence[Collection[str]] | None = None) -> Scores:
        """Return a score as the mean over kinds of their means, as `Predictions.group_means` defines it.

        `kinds` are those of each run; None takes all questions of a run as one kind.
        """
        runs = len(self._predictions)
        value_R, influence_SR = np.full(runs, np.nan), np.zeros((self._scenes, runs))
        asked_SR = np.zeros((self._scenes, runs), dtype=bool)
        for column, (run, scene_of) in enumerate(zip(self._predictions, self._scene_of, strict=True)):
            given = run.score(score).astype(np.float64)
            masks = [slice(None)] if kinds is None else [run.kind == kind for kind in kinds[column]]
            means = []
            for mask in masks:
                asked_S = np.bincount(scene_of[mask], minlength=self._scenes)
                total_S = np.bincount(scene_of[mask], weights=given[mask], minlength=self._scenes)
                means.append(total_S.sum() / asked_S.sum())
                influence_SR[:, column] += (total_S - means[-1] * asked_S) / asked_S.sum() / len(masks)
                asked_SR[:, column] |= asked_S > 0
            if means:
                value_R[column] = np.mean(means)
        return Scores(value_R, influence_SR, asked_SR)


def corrected(differences: Mapping[Key, Difference]) -> dict[Key, Difference]:
    """Return the differences with p-values that are corrected for all of them together (Holm, 1979).

    Differences without a p-value are unchanged and do not count.
    """
    known = sorted((d.p, index, key) for index, (key, d) in enumerate(differences.items()) if d.p is not None)
    made, highest = dict(differences), 0.0
    for rank, (p, _, key) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        made[key] = replace(differences[key], corrected_p=highest)
    return made


def _margin_and_p(values_N: Floats, influence_SN: Floats, scenes: int) -> tuple[float | None, float | None]:
    """Half the length of the 95 % interval of the mean over seeds, and the p-value of a mean of 0."""
    seeds = len(values_N)
    if seeds < FEWEST_SEEDS or scenes < 2:
        return None, None
    of_seeds = float(values_N.var(ddof=1)) / seeds
    of_scenes = _over_scenes(influence_SN.mean(1), scenes)
    both = of_seeds + of_scenes
    freedom = float(seeds - 1)
    if both > 0:
        freedom = both**2 / (of_seeds**2 / (seeds - 1) + of_scenes**2 / (scenes - 1))
    ways = ((both, freedom), (of_seeds, float(seeds - 1)))
    size = abs(float(values_N.mean()))
    margin = max(float(stdtrit(df, _UPPER)) * math.sqrt(variance) for variance, df in ways)
    return margin, max(_p_value(size, variance, df) for variance, df in ways)


def _over_scenes(influence_S: Floats, scenes: int) -> float:
    """Variance of a score over scenes, from their influences."""
    return float((influence_S**2).sum()) * scenes / (scenes - 1)


def _p_value(size: float, variance: float, freedom: float) -> float:
    if variance == 0:
        return float(size == 0)
    return 2 * float(stdtr(freedom, -size / math.sqrt(variance)))


def _within_shares(value: float, margin: float) -> tuple[float, float]:
    """Interval of a share, clipped to 0 and 1."""
    return max(0.0, value - margin), min(1.0, value + margin)
