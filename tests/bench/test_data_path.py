"""Ratios are taken within a round, so a round on a busy machine changes nothing."""

import pytest

from llava_mini.bench.data_path import OWN, USUAL, Findings
from llava_mini.bench.stopwatch import Spread


def test_a_ratio_compares_trials_of_the_same_round(findings: Findings) -> None:
    assert findings.ratio(USUAL, OWN) == Spread.of([9 / 2.8, 18 / 5.6])


def test_a_spread_is_median_least_and_most() -> None:
    assert Spread.of([3.0, 1.0, 10.0]) == Spread(3, 1, 10)


def test_memory_is_what_comes_on_top(findings: Findings) -> None:
    assert findings.loading(OWN) == pytest.approx(32.8)
