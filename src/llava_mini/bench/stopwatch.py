"""Interleaved measurements: every round runs every trial once, so whatever else the machine does meets all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from llava_mini.models.prepacked import PrepackedLinear


@dataclass(frozen=True)
class Trial:
    """Something that is run again and again.

    Attributes:
        way: Who does it.
        task: What.
        run: Does it once.
        batch: Prompts that are worked on together.
        frames: Of each prompt.
        flops: Of one run; 0: not told.
        times: How often `run` does the task.
    """

    way: str
    task: str
    run: Callable[[], object]
    batch: int = 1
    frames: int = 1
    flops: int = 0
    times: int = 1


@dataclass(frozen=True)
class Spread:
    """Of one value over the rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def shown(self, digits: int) -> str:
        """Median, least and most with so many digits after the point."""
        return f"{self.median:.{digits}f} ({self.least:.{digits}f} to {self.most:.{digits}f})"


class Seconds(NamedTuple):
    """A trial's seconds for its task once, one for each round: as they passed, and of all cores together."""

    wall: list[float]
    cpu: list[float]


@dataclass(frozen=True)
class Timing:
    """A trial's seconds for its task once: as they passed, and of all cores together."""

    way: str
    task: str
    batch: int
    frames: int
    flops: int
    wall: Spread
    cpu: Spread

    def share(self, peak: Timing, of: str = "wall") -> float:
        """FLOPs over what `peak` does in the same time."""
        seconds, best = (getattr(each, of).median for each in (self, peak))
        return (self.flops / seconds) / (peak.flops / best)


def matmul_peak(device: torch.device, dtype: torch.dtype, size: int) -> Trial:
    """The device's own limit: products of large square matrices."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    return Trial("matmul", f"{size}x{size}", lambda: torch.mm(left, right, out=out), flops=2 * size**3)


def prepacked_peak(size: int) -> Trial:
    """The same on a CPU in float32 with a prepacked matrix, which another library multiplies."""
    left, linear = torch.randn(size, size), PrepackedLinear(nn.Linear(size, size, bias=False))
    return Trial("matmul, prepacked", f"{size}x{size}", lambda: linear(left), flops=2 * size**3)


@torch.no_grad()
def measure(trials: Sequence[Trial], rounds: int, device: torch.device) -> list[Timing]:
    """Run all trials once to warm up and then `rounds` times, in turn."""
    return [
        Timing(trial.way, trial.task, trial.batch, trial.frames, trial.flops, Spread.of(wall), Spread.of(cpu))
        for trial, (wall, cpu) in zip(trials, clock(trials, rounds, device), strict=True)
    ]


def clock(trials: Sequence[Trial], rounds: int, device: torch.device) -> list[Seconds]:
    """What `measure` sums up: the seconds of every trial in every round after the one to warm up."""
    found = [Seconds([], []) for _ in trials]
    for number in range(rounds + 1):
        for trial, seconds in zip(trials, found, strict=True):
            began, worked = time.perf_counter(), time.process_time()
            trial.run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number:
                seconds.wall.append((time.perf_counter() - began) / trial.times)
                seconds.cpu.append((time.process_time() - worked) / trial.times)
    return found
