"""Error of a stopped worker that makes batches, which ends the run; an unusable sample is a `SampleError`."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

TIMED_OUT = "DataLoader timed out"  # beginning of torch's message
_OF_A_LOADER = ("DataLoader worker (pid", TIMED_OUT, "Pin memory thread", "Too many open files. Comm")
_SIGNAL = re.compile(r"is killed by signal: ([^.]+)\.")


class LoaderError(RuntimeError):
    """A worker process that makes batches died or hangs; the message is one line for the user."""


@contextmanager
def loader_failures_reported(
    setting: str = "data.num_workers", exit_codes: Callable[[], Sequence[int | None]] = tuple
) -> Iterator[None]:
    """Convert torch's errors for stopped workers to one line; for a dead worker, torch may raise at any point.

    `exit_codes` gives the workers' exit codes as multiprocessing has them; torch does not always report them.

    Raises:
        LoaderError: Raised instead of torch's own error; it names the setting for the number of workers.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith(_OF_A_LOADER):
            raise
        found = _SIGNAL.search(f"{error} {error.__cause__ or ''}")
        signals = [signal.strsignal(-code) for code in exit_codes() if code is not None and code < 0]
        cause = found[1] if found else next(iter(signals), None)
        raise LoaderError(_line(str(error), cause or "it may have said why", setting)) from error


def _line(text: str, cause: str, setting: str) -> str:
    if text.startswith(TIMED_OUT):
        return f"no batch came for half an hour: a worker hangs, or its batch was lost; {setting}=0 shows where"
    if not text.startswith("DataLoader worker"):
        return f"workers cannot be heard any more ({text.splitlines()[0]}): take fewer of them ({setting})"
    if cause == "Bus error":
        remedies = f"take fewer workers ({setting}), enlarge it, or take data.worker_transport=pipe"
        return f"a worker that makes batches died, as /dev/shm is full: {remedies}"
    if cause == "Killed":
        return f"a worker that makes batches was killed: perhaps too little memory for so many workers ({setting})"
    return f"a worker that makes batches died ({cause}); {setting}=0 shows where"
