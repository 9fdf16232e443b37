"""A shard set of millions of samples that has only an index, and workers that open it at the same time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np

from llava_mini.bench.processes import CONTEXT, Measuring, private_memory
from llava_mini.data.format.index import FORMAT_VERSION, INDEX_DTYPE, INDEX_FILE, Modality
from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.stream.order import ShuffledOrder
from llava_mini.files import write_json

_SAMPLES_PER_SHARD = 1000
_SAMPLE_BYTES = 2**17
_LOOKED_UP = 20_000  # samples


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
