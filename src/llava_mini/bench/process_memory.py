"""New processes with nothing warmed up or allocated, and process memory as the kernel counts it."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def fresh(function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
    """Call a function in a new process and return its result."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args, **kwargs).result()


def private_memory() -> float:
    """Return the MiB that only this process uses: the cost of a worker. File pages that no other process maps count."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    kib = {name: int(value.split()[0]) for name, value in (line.split(":") for line in lines)}
    return (kib["Private_Clean"] + kib["Private_Dirty"]) / 1024


def settled_memory() -> int:
    """Return the resident bytes of this process after returning freed memory to the system, and reset its peak."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else freed memory would be reused and not be counted
    Path("/proc/self/clear_refs").write_text("5")
    return resident_memory()[0]


def resident_memory() -> tuple[int, int]:
    """Return the resident bytes of this process now, and their peak."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, most = (1024 * int(lines[name].split()[0]) for name in ("VmRSS", "VmHWM"))
    return now, most
