"""Measurements of one process: CPU and wall time of batches, memory of a loader, a build, opening of a large set.

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
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llava_mini.bench.loaders import BATCH_SIZE, Loader
from llava_mini.bench.made_data import MadeData
from llava_mini.bench.processes import CONTEXT, Measuring, private_memory
from llava_mini.bench.timing import elapsed
from llava_mini.data.format.index import FORMAT_VERSION, INDEX_DTYPE, INDEX_FILE, Modality
from llava_mini.data.format.shards import ShardSet
from llava_mini.data.stream.order import ShuffledOrder
from llava_mini.files import write_json
from llava_mini.media.images import verify_image
from llava_mini.units import MIB

_CPU = torch.device("cpu")
_WARM_UP = 4  # batches
# of the large set
_SAMPLES_PER_SHARD = 1000
_SAMPLE_BYTES = 2**17
_LOOKED_UP = 20_000  # samples


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
    picture_bytes: float


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


@dataclass(frozen=True)
class Opening:
    """Cost of opening a large shard set in one worker."""

    seconds: float  # from the start to the key of the first sample
    private: float  # MiB that the worker shares with no other, after all workers have looked up 20,000 samples


def make_large_set(folder: Path, samples: int) -> None:
    """Create a shard set of `samples` samples that can be opened but not read: its tar files are sparse and empty."""
    folder.mkdir()
    index = np.zeros(samples, INDEX_DTYPE)
    shard, place = np.divmod(np.arange(samples), _SAMPLES_PER_SHARD)
    index["shard"], index["offset"], index["size"] = shard, place * _SAMPLE_BYTES, _SAMPLE_BYTES
    index["record_bytes"], index["modality"], index["frames"] = 1024, Modality.IMAGE, 1
    index["key"] = np.char.mod("%09d", np.arange(samples))
    np.save(folder / INDEX_FILE, index)
    shards = []
    for number, count in enumerate(np.bincount(shard).tolist()):
        name, size = f"shard-{number:06d}.tar", count * _SAMPLE_BYTES
        with open(folder / name, "wb") as file:
            file.truncate(size)
        shards.append({"name": name, "bytes": size, "sha256": f"{number:064x}", "samples": count, "rejected": 0})
    facts = {"bytes": (folder / INDEX_FILE).stat().st_size, "sha256": "0" * 64}
    listing = {"version": FORMAT_VERSION, "shards": shards, "sources": [""], "index": facts, "plan": None}
    write_json(folder / "shards.json", listing)


def open_large_set(folder: Path, workers: int) -> list[Opening]:
    """Return the measurements of `workers` processes that open and look up the same shard set at the same time."""
    barrier = CONTEXT.Barrier(workers, timeout=300)  # so that no worker waits forever for one that died
    openings = []
    for process in [Measuring(_open_set, folder, barrier) for _ in range(workers)]:
        found, error = process.results()
        if error is not None:
            raise error
        openings += found
    return openings


def _open_set(folder: Path, barrier: Barrier) -> Opening:
    before = private_memory()
    start = time.perf_counter()
    shards = ShardSet(folder)
    order = ShuffledOrder([shards], seed=0)
    shards.key(order(0)[1])
    seconds = time.perf_counter() - start
    for position in range(_LOOKED_UP):
        number = order(position)[1]
        shards.key(number), shards.frames(number)
    barrier.wait()
    after = private_memory()
    barrier.wait()
    return Opening(seconds, after - before)
