"""Trials are interleaved in rounds, after one that warms up."""

import time

import torch

from llava_mini.bench.timing import Spread, Trial, elapsed, measure

CPU = torch.device("cpu")


def test_rounds_are_interleaved_after_one_to_warm_up() -> None:
    seen: list[str] = []
    trials = [Trial("a", "x", lambda: seen.append("a"), flops=10), Trial("b", "x", lambda: seen.append("b"), times=4)]
    first, second = measure(trials, rounds=2, device=CPU)
    assert seen == ["a", "b"] * 3
    assert (first.way, second.way) == ("a", "b")


def test_wall_time_has_the_waiting_and_cpu_time_has_not() -> None:
    wall, cpu = elapsed(lambda: time.sleep(0.2), CPU)
    assert wall >= 0.2 > cpu


def test_a_spread_is_median_least_and_most() -> None:
    assert Spread.of([3.0, 1.0, 10.0]) == Spread(3, 1, 10)
    assert Spread(3, 1, 10).shown(1) == "3.0 (1.0 to 10.0)"
