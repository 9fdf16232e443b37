"""Intervals against plain formulas, and how often they hold a truth that is known."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from llava_mini.predictions import Predictions
from llava_mini.sweep.statistics import Answers, Difference, Scores, corrected

WORDS = np.array([7, 16, 32])  # of the toy world's three dense kinds


def make_predictions(right_SQ: np.ndarray, name: str = "scene") -> Predictions:
    """Predictions of [scenes, questions] shares of right words, two kinds in turn."""
    scenes, questions = right_SQ.shape
    right = right_SQ.ravel().astype(np.float32)
    return Predictions(
        key=np.repeat([f"{name}-{scene:04}" for scene in range(scenes)], questions),
        turn=np.tile(np.arange(questions), scenes),
        kind=np.tile(np.where(np.arange(questions) % 2, "colors", "digits"), scenes),
        words=np.full(right.shape, 7),
        exact_match=(right == 1).astype(np.float32),
        word_accuracy=right,
        nll=1 - right,
    )


def scores_of(*runs: Predictions) -> Scores:
    return Answers(runs).scores("word_accuracy")


def simulated(rng: np.random.Generator, truth: float, scenes: int = 60, questions: int = 8) -> Predictions:
    """Answers whose chance differs from scene to scene (half of them hard, half easy) around a true accuracy."""
    chance_S1 = truth + 0.2 * rng.choice([-1, 1], size=(scenes, 1))
    return make_predictions(rng.random((scenes, questions)) < chance_S1)


def coverage(trial: Callable[[np.random.Generator], bool], trials: int = 300) -> float:
    return float(np.mean([trial(np.random.default_rng([7, index])) for index in range(trials)]))


def holds(interval: tuple[float, float] | None, truth: float) -> bool:
    assert interval is not None
    return interval[0] <= truth <= interval[1]


def boards(rng: np.random.Generator, seeds: int, spread: float) -> Scores:
    """Two configurations on 400 boards with three dense kinds, by chance of a word, as in the toy world.

    The first is 30 points better. Scenes are hard or easy for both and for each; `spread` is the standard deviation of
    the difference over seeds.
    """
    level = np.repeat([0.7, 0.4], seeds)
    moved = np.concatenate([rng.standard_normal(seeds) * spread, np.zeros(seeds)])
    hard_S1 = 0.06 * rng.standard_normal((400, 1)) + 0.04 * np.repeat(rng.standard_normal((400, 2)), seeds, axis=1)
    chance_S1R = np.clip(level + moved + hard_S1, 0, 1)[:, None]
    right_SR = (rng.binomial(WORDS[None, :, None], chance_S1R) / WORDS[None, :, None]).mean(1)
    value_R = right_SR.mean(0)
    return Scores(value_R, (right_SR - value_R) / len(right_SR), np.ones(right_SR.shape, dtype=bool))


@pytest.mark.parametrize("seeds", [3, 5, 8])
@pytest.mark.parametrize("spread", [0.002, 0.01, 0.05])
def test_an_interval_over_seeds_and_scenes_holds_the_truth(seeds: int, spread: float) -> None:
    ours, theirs = {s: s for s in range(seeds)}, {s: s + seeds for s in range(seeds)}

    def trial(rng: np.random.Generator) -> bool:
        difference = boards(rng, seeds, spread).difference(ours, theirs)
        return holds(difference.interval, 0.3)

    assert 0.92 <= coverage(trial, trials=400) <= 0.999


def test_the_margin_is_that_of_seeds_and_scenes_by_welch_and_satterthwaite() -> None:
    rng = np.random.default_rng(0)
    shares_RS = rng.random((3, 50))
    runs = [make_predictions(np.repeat(row[:, None], 2, axis=1)) for row in shares_RS]
    of_seeds = shares_RS.mean(1).var(ddof=1) / 3
    of_scenes = shares_RS.mean(0).var(ddof=1) / 50
    freedom = (of_seeds + of_scenes) ** 2 / (of_seeds**2 / 2 + of_scenes**2 / 49)
    margin = max(stats.t.ppf(0.975, freedom) * np.sqrt(of_seeds + of_scenes), stats.t.ppf(0.975, 2) * np.sqrt(of_seeds))
    mean = scores_of(*runs).mean({seed: seed for seed in range(3)})
    assert mean.value == pytest.approx(shares_RS.mean(), abs=1e-6)
    assert mean.interval == pytest.approx((mean.value - margin, mean.value + margin), abs=1e-6)


def test_the_margin_is_never_below_that_of_the_seeds_alone() -> None:
    scene_S = np.linspace(0.3, 0.7, 30)
    runs = [make_predictions(np.repeat((scene_S + moved)[:, None], 2, axis=1)) for moved in (0.0, 0.02, 0.04)]
    mean = scores_of(*runs).mean({0: 0, 1: 1, 2: 2})
    assert mean.interval is not None
    assert mean.interval[1] - mean.value >= stats.t.ppf(0.975, 2) * 0.02 / np.sqrt(3) - 1e-6


def test_p_values_agree_with_intervals() -> None:
    sides = set()
    for trial in range(60):
        rng = np.random.default_rng([1, trial])
        runs = [simulated(rng, truth) for truth in (0.6, 0.6, 0.6, 0.52, 0.52, 0.52)]
        difference = scores_of(*runs).difference({0: 0, 1: 1, 2: 2}, {0: 3, 1: 4, 2: 5})
        assert difference is not None
        assert difference.p is not None
        assert (difference.p < 0.05) != holds(difference.interval, 0.0)
        sides.add(difference.p < 0.05)
    assert sides == {True, False}


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_give_values_alone(seeds: int) -> None:
    rng = np.random.default_rng(0)
    scores = scores_of(*(simulated(rng, truth) for truth in [0.9] * seeds + [0.2] * seeds))
    ours, theirs = {s: s for s in range(seeds)}, {s: s + seeds for s in range(seeds)}
    difference = scores.difference(ours, theirs)
    assert scores.mean(ours).interval is None
    assert difference is not None
    assert difference.value > 0.5
    assert (difference.interval, difference.p) == (None, None)
    assert not corrected({"only": difference})["only"].clear


def test_a_run_s_interval_holds_the_truth_19_times_of_20() -> None:
    assert 0.91 <= coverage(lambda rng: holds(scores_of(simulated(rng, 0.6)).run(0).interval, 0.6)) <= 0.98


def test_taking_questions_for_scenes_would_be_too_sure() -> None:
    def trial(rng: np.random.Generator) -> bool:
        run = simulated(rng, 0.6)
        alone = Predictions(**{**vars(run), "key": np.arange(len(run.key)).astype(str)})
        return holds(scores_of(alone).run(0).interval, 0.6)

    assert coverage(trial) < 0.9


def test_a_paired_difference_is_narrower_than_an_unpaired_one() -> None:
    rng = np.random.default_rng(0)
    hard_S1 = 0.3 * rng.choice([-1, 1], size=(60, 1))
    chances = (0.6, 0.6, 0.6, 0.5, 0.5, 0.5)
    runs = [make_predictions(rng.random((60, 8)) < truth + hard_S1) for truth in chances]
    elsewhere = [make_predictions(run.word_accuracy.reshape(60, 8), "other") for run in runs[3:]]
    ours, theirs = {0: 0, 1: 1, 2: 2}, {0: 3, 1: 4, 2: 5}
    widths = []
    for others in (runs[3:], elsewhere):
        difference = scores_of(*runs[:3], *others).difference(ours, theirs)
        low, high = difference.interval or (0.0, 0.0)
        widths.append(high - low)
    assert 0 < widths[0] < 0.8 * widths[1]


def test_a_score_is_the_mean_over_kinds_and_its_interval_that_of_a_jackknife() -> None:
    rng = np.random.default_rng(0)
    run = make_predictions(rng.random((40, 9)) < rng.random((40, 1)))
    run = run.chosen(rng.random(len(run.key)) < 0.7)  # so that scenes and kinds have unequal numbers of questions
    kinds = [["digits", "colors"]]
    estimate = Answers([run]).scores("word_accuracy", kinds).run(0)
    assert estimate.value == pytest.approx(run.group_means("word_accuracy")["dense"])
    without = [run.chosen(run.key != key).group_means("word_accuracy")["dense"] for key in np.unique(run.key)]
    deviation = np.sqrt((len(without) - 1) * np.var(without))
    margin = stats.t.ppf(0.975, len(without) - 1) * deviation
    assert estimate.interval is not None
    assert estimate.interval[1] - estimate.value == pytest.approx(margin, rel=0.05)


def test_runs_without_a_kind_have_no_score() -> None:
    run = make_predictions(np.ones((3, 2)))
    scores = Answers([run, run]).scores("word_accuracy", [["digits"], []])
    assert [scores.known(0), scores.known(1)] == [True, False]
    assert scores.run(0).value == 1


def test_configurations_without_common_seeds_are_not_compared() -> None:
    rng = np.random.default_rng(0)
    scores = scores_of(*(simulated(rng, 0.6) for _ in range(3)))
    assert scores.difference({0: 0}, {1: 1}) is None
    common = scores.difference({0: 0, 1: 1}, {1: 2, 2: 0})
    assert common is not None
    assert list(common.by_seed) == [1]


def test_a_run_against_itself_differs_by_nothing_and_one_without_spread_by_all() -> None:
    alike = scores_of(*[simulated(np.random.default_rng(0), 0.6)] * 3).difference(
        {0: 0, 1: 1, 2: 2}, {0: 0, 1: 1, 2: 2}
    )
    assert alike is not None
    assert (alike.value, alike.interval, alike.p) == (0, (0, 0), 1)
    right, wrong = make_predictions(np.ones((9, 2))), make_predictions(np.zeros((9, 2)))
    apart = scores_of(right, wrong).difference({0: 0, 1: 0, 2: 0}, {0: 1, 1: 1, 2: 1})
    assert apart is not None
    assert (apart.value, apart.interval, apart.p) == (1, (1, 1), 0)


def test_scenes_are_matched_by_key_whatever_their_order() -> None:
    rng = np.random.default_rng(0)
    runs = [simulated(rng, 0.6) for _ in range(6)]
    mixed = [run.chosen(np.argsort(rng.random(len(run.key)))) if index % 2 else run for index, run in enumerate(runs)]
    ours, theirs = {0: 0, 1: 1, 2: 2}, {0: 3, 1: 4, 2: 5}
    expected, given = (scores_of(*them).difference(ours, theirs) for them in (runs, mixed))
    assert given.interval == pytest.approx(expected.interval)


def test_holm_corrects_for_all_that_have_a_p_value() -> None:
    given = {name: Difference(0.1, (0, 1), p=p) for name, p in zip("abcd", (0.01, 0.04, 0.03, 0.005), strict=True)}
    made = corrected({**given, "none": Difference(0.1)})
    assert [made[name].corrected_p for name in "abcd"] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [made[name].clear for name in "abcd"] == [True, False, False, True]
    assert made["none"].corrected_p is None
    assert not made["none"].clear
