"""Interleaved measurements: every round runs every trial once, so other load on the machine affects all alike."""

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
    """A task that is run repeatedly to measure its time."""

    way: str  # model or method that does the task
    task: str
    run: Callable[[], object]  # makes one run
    batch: int = 1  # prompts that are processed together
    frames: int = 1  # of each prompt
    flops: int = 0  # of one run; 0: not given
    times: int = 1  # how often one run does the task


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest value over the rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def shown(self, digits: int) -> str:
        """Return median, least and most as text with `digits` digits after the point."""
        return f"{self.median:.{digits}f} ({self.least:.{digits}f} to {self.most:.{digits}f})"


class Seconds(NamedTuple):
    """Seconds in which a trial does its task once, one value per round: wall time, and CPU time of all cores."""

    wall: list[float]
    cpu: list[float]


@dataclass(frozen=True)
class Timing:
    """Seconds in which a trial does its task once, over the rounds: wall time, and CPU time of all cores."""

    way: str
    task: str
    batch: int
    frames: int
    flops: int
    wall: Spread
    cpu: Spread

    def share(self, peak: Timing, of: str = "wall") -> float:
        """Return the FLOPs as a share of what `peak` does in the same time."""
        seconds, best = (getattr(each, of).median for each in (self, peak))
        return (self.flops / seconds) / (peak.flops / best)


def matmul_peak(device: torch.device, dtype: torch.dtype, size: int) -> Trial:
    """Return the trial of the device's own limit: products of large square matrices."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    return Trial("matmul", f"{size}x{size}", lambda: torch.mm(left, right, out=out), flops=2 * size**3)


def prepacked_peak(size: int) -> Trial:
    """Return the trial of a CPU's limit in float32 with a prepacked matrix, which another library multiplies."""
    left, linear = torch.randn(size, size), PrepackedLinear(nn.Linear(size, size, bias=False))
    return Trial("matmul, prepacked", f"{size}x{size}", lambda: linear(left), flops=2 * size**3)


@torch.no_grad()
def measure(trials: Sequence[Trial], rounds: int, device: torch.device) -> list[Timing]:
    """Run all trials once to warm up and then in `rounds` interleaved rounds."""
    return [
        Timing(trial.way, trial.task, trial.batch, trial.frames, trial.flops, Spread.of(wall), Spread.of(cpu))
        for trial, (wall, cpu) in zip(trials, clock(trials, rounds, device), strict=True)
    ]


def clock(trials: Sequence[Trial], rounds: int, device: torch.device) -> list[Seconds]:
    """Return the seconds of every trial in every round after the warm-up round. `measure` summarizes them."""
    found = [Seconds([], []) for _ in trials]
    for number in range(rounds + 1):
        for trial, seconds in zip(trials, found, strict=True):
            wall, cpu = elapsed(trial.run, device)
            if number:
                seconds.wall.append(wall / trial.times)
                seconds.cpu.append(cpu / trial.times)
    return found


def elapsed(run: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Run a function once and return its seconds: wall time, and CPU time of all cores. A GPU's work is waited for."""
    began, worked = time.perf_counter(), time.process_time()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began, time.process_time() - worked
