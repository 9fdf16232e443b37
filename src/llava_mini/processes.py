"""Processes that end with their parent, also when it is killed, and the number of cores for them.

As a program, `python -IS processes.py PARENT_PID COMMAND...` becomes a command that ends when its parent process ends.
On Linux the kernel kills it when the parent dies in any way (elsewhere only Ctrl-C ends it). It is a separate program
because setting this option between fork and exec is not safe in a process that has threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def end_with_parent(parent_pid: int) -> None:
    """Make the kernel kill this process when its parent dies, on Linux; end it at once if the parent is already dead.

    Args:
        parent_pid: Process id of the parent, as given by the parent.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def ending_with_this(command: Sequence[str]) -> list[str]:
    """Return a command line that runs `command` in a process that ends when this process, its parent, ends."""
    return [sys.executable, "-IS", __file__, str(os.getpid()), *command]


if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
