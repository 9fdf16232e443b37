"""Benchmark of training steps on a CPU: seconds by part in interleaved rounds, for a tiny and a mid-size shape.

A round runs the step of every way once and times each part separately. So other load on the machine affects all ways
alike. Ratios are taken within a round.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from llava_mini.bench.baselines import TRANSFORMERS
from llava_mini.bench.stopwatch import Seconds, Spread, clock
from llava_mini.bench.training_steps import PARTS, Shape, build_steps, mid, tiny

log = logging.getLogger("llava_mini")

_TINY_ROUNDS = 8  # rounds of the toy world per round of the mid-size shape, whose step takes a hundred times as long


@dataclass(frozen=True)
class StepTimes:
    """Time of the training steps of one way.

    Attributes:
        way: Name of the way.
        samples: Number of samples in a batch.
        tokens: Length of the language model's sequences, including padding and image placeholders.
        parts: Seconds of each part in each round.
    """

    way: str
    samples: int
    tokens: int
    parts: Mapping[str, Seconds]

    def part(self, name: str, of: str = "cpu") -> Spread:
        """Return the seconds of a part; `of` is "wall" or "cpu"."""
        return Spread.of(getattr(self.parts[name], of))

    def steps(self, of: str = "cpu") -> list[float]:
        """Return the seconds of the whole step in each round; `of` is "wall" or "cpu"."""
        return [sum(parts) for parts in zip(*(getattr(seconds, of) for seconds in self.parts.values()), strict=True)]

    def step(self, of: str = "cpu") -> Spread:
        """Return the seconds of the whole step; `of` is "wall" or "cpu"."""
        return Spread.of(self.steps(of))

    def rate(self) -> Spread:
        """Return the samples per CPU-second."""
        return Spread.of([self.samples / seconds for seconds in self.steps()])


@dataclass(frozen=True)
class Findings:
    """Results of one shape.

    Attributes:
        shape: Name of the shape.
        rounds: Number of rounds.
        ways: Times of every way that was measured.
    """

    shape: str
    rounds: int
    ways: list[StepTimes]

    def find(self, way: str) -> StepTimes:
        return next(each for each in self.ways if each.way == way)

    def ratio(self, way: str, of: str = "cpu") -> Spread:
        """Return how many times as fast a step of `way` is as transformers' step; `of` is "wall" or "cpu"."""
        pairs = zip(self.find(TRANSFORMERS).steps(of), self.find(way).steps(of), strict=True)
        return Spread.of([theirs / ours for theirs, ours in pairs])


def run(work: Path, rounds: int) -> list[Findings]:
    """Measure both shapes in float32, with torch's number of threads.

    Args:
        work: Empty folder for the data.
        rounds: Number of rounds of the mid-size shape; the toy world has eight times as many.
    """
    tiny_world = measure_shape(tiny(work / "tiny"), work / "tiny-features", _TINY_ROUNDS * rounds)
    return [tiny_world, measure_shape(mid(work / "mid"), work / "mid-features", rounds)]


def measure_shape(shape: Shape, features: Path, rounds: int) -> Findings:
    """Measure the training step of every way.

    Args:
        shape: Model and samples of the steps.
        features: Folder for the vision tower's features.
        rounds: Number of rounds after the warm-up round.
    """
    torch.manual_seed(0)
    steps = build_steps(shape, features)
    log.info("%s: %d ways, %d rounds and one to warm up", shape.name, len(steps), rounds)
    seconds = iter(clock([trial for step in steps for trial in step.trials()], rounds, torch.device("cpu")))
    return Findings(
        shape.name,
        rounds,
        [StepTimes(step.way, step.samples, step.tokens, {part: next(seconds) for part in PARTS}) for step in steps],
    )
