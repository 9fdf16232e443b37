"""Interleaved measurements: every round runs every trial once, so whatever else the machine does meets all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
    walls: list[list[float]] = [[] for _ in trials]
    cpus: list[list[float]] = [[] for _ in trials]
    for number in range(rounds + 1):
        for trial, wall, cpu in zip(trials, walls, cpus, strict=True):
            began, worked = time.perf_counter(), time.process_time()
            trial.run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number:
                wall.append((time.perf_counter() - began) / trial.times)
                cpu.append((time.process_time() - worked) / trial.times)
    return [
        Timing(trial.way, trial.task, trial.batch, trial.frames, trial.flops, Spread.of(wall), Spread.of(cpu))
        for trial, wall, cpu in zip(trials, walls, cpus, strict=True)
    ]
