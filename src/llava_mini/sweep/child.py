"""Becomes a command that ends with the process that asked for it: `python child.py PARENT_PID COMMAND...`.

On Linux the kernel kills the command when its parent dies in whatever way (elsewhere only Ctrl-C ends it). A program
of its own, because setting this between fork and exec is not safe in a process that has threads.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main(parent_pid: int, command: list[str]) -> None:
    """Replaces this process by `command`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit("what asked for this command ended before it began")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
