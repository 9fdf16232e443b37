"""Program that becomes a command which ends when its parent process ends: `python child.py PARENT_PID COMMAND...`.

On Linux the kernel kills the command when its parent dies in any way (elsewhere only Ctrl-C ends it). This is a
separate program because setting this option between fork and exec is not safe in a process that has threads.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main(parent_pid: int, command: list[str]) -> None:
    """Replace this process with `command`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit("what asked for this command ended before it began")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
