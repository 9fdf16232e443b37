"""A process that ends with its parent runs its command as it is, and not at all if the parent is gone."""

import subprocess
import sys

from llava_mini import processes

SAY = [sys.executable, "-c", "import sys; print(*sys.argv[1:])", "a b", "--c"]


def test_the_command_gets_its_arguments_as_they_are() -> None:
    done = subprocess.run(processes.ending_with_this(SAY), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "a b --c\n")


def test_a_command_whose_parent_is_gone_does_not_start() -> None:
    command = [sys.executable, processes.__file__, "1", *SAY]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
