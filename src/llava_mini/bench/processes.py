"""New processes that measure, with nothing warmed up or allocated, and process memory as the kernel counts it.

This module needs only torch, so that a machine with a GPU needs nothing else.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from llava_mini.out_of_memory import is_out_of_memory, reason_of

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

CONTEXT = multiprocessing.get_context("spawn")
NOT_RUN = "not run: no time left"  # status of what was not started


class Measuring:
    """A process that measures; nothing of it stays in memory or on a device when it has ended.

    It calls a function that returns one result, or an iterator over several.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self._connection, theirs = CONTEXT.Pipe(duplex=False)
        self._process = CONTEXT.Process(target=_send_results, args=(theirs, function, arguments), daemon=True)
        self._process.start()
        theirs.close()

    def results(self, seconds: float = float("inf")) -> tuple[list[Any], Exception | None]:
        """Wait for the process, which is killed after `seconds`.

        Return all results, also those before a failure or timeout, and why there are no more; None: there are none.
        """
        found: list[Any] = []
        end = time.monotonic() + seconds
        try:
            while self._connection.poll(None if end == float("inf") else max(0.0, end - time.monotonic())):
                found.append(self._connection.recv())
            return found, TimeoutError()
        except EOFError:
            self._process.join()
        finally:
            self._process.kill()
            self._process.join()
        if found and isinstance(found[-1], Exception):
            return found[:-1], found[-1]
        status = self._process.exitcode
        return found, ChildProcessError(f"the process ended with status {status}") if status else None


def _send_results(connection: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        found = function(*arguments)
        for each in found if isinstance(found, Iterator) else [found]:
            connection.send(each)
    except Exception as error:
        error.add_note(traceback.format_exc())  # the process that raises it again has no other trace of this one
        connection.send(error)
        raise SystemExit(1) from error


def fresh(function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
    """Call a function in a new process and return its result, or raise its exception."""
    found, error = Measuring(partial(function, *args, **kwargs)).results()
    if error is not None:
        raise error
    result: Result = found[0]
    return result


def status_of(error: Exception) -> str:
    """Return in one line why a measurement has no result, for a report."""
    if isinstance(error, TimeoutError):
        return "ended: no time left"
    kind = "out of memory" if is_out_of_memory(error) else f"failed: {type(error).__name__}"
    return f"{kind}: {reason_of(error)}"


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
