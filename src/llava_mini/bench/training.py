"""The bench of training steps on a CPU: seconds by part, in interleaved rounds, of a tiny shape and a mid-size one.

A round runs the step of every way once, each part on its own clock, so whatever else the machine does meets all ways
alike; ratios are taken within a round.
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

_TINY_ROUNDS = 8  # of the tiny world's, for one of the mid-size shape, whose step takes a hundred times as long


@dataclass(frozen=True)
class StepTimes:
    """What the steps of one way took.

    Attributes:
        way: Whose.
        samples: Of a batch.
        tokens: Of the language model's sequences, padding and what stands for images included.
        parts: Seconds of each part in each round.
    """

    way: str
    samples: int
    tokens: int
    parts: Mapping[str, Seconds]

    def part(self, name: str, of: str = "cpu") -> Spread:
        """Seconds of a part; `of`: wall or cpu."""
        return Spread.of(getattr(self.parts[name], of))

    def steps(self, of: str = "cpu") -> list[float]:
        """Seconds of the whole step in each round; `of`: wall or cpu."""
        return [sum(parts) for parts in zip(*(getattr(seconds, of) for seconds in self.parts.values()), strict=True)]

    def step(self, of: str = "cpu") -> Spread:
        """Seconds of the whole step; `of`: wall or cpu."""
        return Spread.of(self.steps(of))

    def rate(self) -> Spread:
        """Samples a CPU-second."""
        return Spread.of([self.samples / seconds for seconds in self.steps()])


@dataclass(frozen=True)
class Findings:
    """What was measured of a shape.

    Attributes:
        shape: Its name.
        rounds: How often.
        ways: Every way that was measured.
    """

    shape: str
    rounds: int
    ways: list[StepTimes]

    def find(self, way: str) -> StepTimes:
        return next(each for each in self.ways if each.way == way)

    def ratio(self, way: str, of: str = "cpu") -> Spread:
        """How many times as fast as transformers' step one of `way` is; `of`: wall or cpu."""
        pairs = zip(self.find(TRANSFORMERS).steps(of), self.find(way).steps(of), strict=True)
        return Spread.of([theirs / ours for theirs, ours in pairs])


def run(work: Path, rounds: int) -> list[Findings]:
    """Measure both shapes in float32, with torch's threads.

    Args:
        work: An empty folder for data.
        rounds: Of the mid-size shape; the tiny world has eight times as many.
    """
    tiny_world = measure_shape(tiny(work / "tiny"), work / "tiny-features", _TINY_ROUNDS * rounds)
    return [tiny_world, measure_shape(mid(work / "mid"), work / "mid-features", rounds)]


def measure_shape(shape: Shape, features: Path, rounds: int) -> Findings:
    """Measure every way's step.

    Args:
        shape: What is trained.
        features: A folder for the vision tower's features.
        rounds: After one to warm up.
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
