"""Measurements of one process: CPU and wall time of batches, memory of a loader, a build.

Each is called in a new process (`fresh`), so that nothing is warmed up or allocated from the previous trial.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from llava_mini.bench.loaders import BATCH_SIZE, Loader
from llava_mini.bench.made_data import MadeData
from llava_mini.bench.processes import private_memory
from llava_mini.bench.timing import elapsed
from llava_mini.media.images import verify_image
from llava_mini.units import MIB

_CPU = torch.device("cpu")
_WARM_UP = 4  # batches


@dataclass(frozen=True)
class Cost:
    """CPU and wall time of one sample, in milliseconds."""

    cpu: float
    wall: float


@dataclass(frozen=True)
class Memory:
    """Private memory of a process in MiB, before loading and at its peak while loading."""

    before: float
    peak: float


@dataclass(frozen=True)
class Build:
    """CPU and wall time of `data build` per sample, in milliseconds, and the mean bytes of an image."""

    cpu: float
    wall: float
    image_bytes: float


def cost(loader: Loader, data: MadeData, samples: int) -> Cost:
    """Measure the time per sample of a loader over at least `samples` samples, after its first batches."""
    torch.set_num_threads(1)
    batches = loader(data)
    _consume(batches, _WARM_UP)
    count = -(-samples // BATCH_SIZE)
    wall, cpu = elapsed(partial(_consume, batches, count), _CPU)
    scale = 1000 / (count * BATCH_SIZE)
    return Cost(cpu * scale, wall * scale)


def memory(loader: Loader, data: MadeData, samples: int) -> Memory:
    """Measure the memory that a loader takes while it makes `samples` samples."""
    torch.set_num_threads(1)
    before = peak = private_memory()
    for _batch in islice(loader(data), samples // BATCH_SIZE):
        peak = max(peak, private_memory())
    return Memory(before, peak)


def bytes_of_records(data: MadeData) -> float:
    """Return the bytes that a record takes in a process that stores the whole JSON as objects."""
    before = private_memory()
    records = json.loads(data.records.read_text())
    return (private_memory() - before) * MIB / len(records)


def build(data: MadeData, out: Path) -> Build:
    """Measure `llava-mini data build` from its start to its end, with one worker."""
    command = [sys.executable, "-m", "llava_mini", "data", "build", str(data.records), "--images", str(data.images)]
    start = time.perf_counter()
    process = subprocess.Popen([*command, "--out", str(out), "--workers", "1"], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    if status:
        raise RuntimeError(f"data build ended with status {os.waitstatus_to_exitcode(status)}")
    sizes = [path.stat().st_size for path in data.images.iterdir()]
    scale = 1000 / len(sizes)
    return Build((usage.ru_utime + usage.ru_stime) * scale, wall * scale, sum(sizes) / len(sizes))


def verification(data: MadeData) -> float:
    """Return the CPU milliseconds to verify one image, the part of a build that cannot be reduced."""
    raws = [path.read_bytes() for path in sorted(data.images.iterdir())[:500]]

    def verify() -> None:
        for raw in raws:
            verify_image(raw)

    _, cpu = elapsed(verify, _CPU)
    return cpu * 1000 / len(raws)


def _consume(batches: Any, count: int) -> None:
    for _batch in islice(batches, count):
        pass
