"""Out-of-memory errors of torch and Python become one line with its advice; all other errors stay as they are."""

import subprocess
import sys

import pytest
import torch

from llava_mini.errors import UserError
from llava_mini.out_of_memory import is_out_of_memory, oom_as_user_error


@oom_as_user_error("smaller images need less")
def fail(error: BaseException) -> None:
    raise error


def test_what_torch_raises_on_a_cpu_is_recognized() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60)
    assert is_out_of_memory(raised.value)
    with pytest.raises(
        UserError, match=r"^out of memory \(.*DefaultCPUAllocator.*\): smaller images need less$"
    ) as told:
        fail(raised.value)
    assert len(str(told.value)) < 220


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"), "CUDA out of memory. Tried"),
        (RuntimeError("std::bad_alloc"), "std::bad_alloc"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_the_reason_is_the_first_line(error: BaseException, reason: str) -> None:
    with pytest.raises(UserError) as told:
        fail(error)
    assert str(told.value) == f"out of memory ({reason}): smaller images need less"
    with pytest.raises(UserError) as told, oom_as_user_error():
        raise error
    assert str(told.value) == f"out of memory ({reason})"


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), UserError("a mistake"), KeyboardInterrupt()])
def test_other_errors_stay_as_they_are(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised:
        fail(error)
    assert raised.value is error


def test_commands_check_their_arguments_without_torch() -> None:
    code = "import sys, llava_mini.commands.ask, llava_mini.commands.chat; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
