"""A function in a process of its own: its results, its failures, its end."""

import multiprocessing
import os
import time
from collections.abc import Iterator

import pytest
import torch

from llava_mini.bench.processes import Measuring, fresh, status_of
from llava_mini.errors import UserError


def counting(last: str) -> Iterator[int]:
    yield 1
    yield 2
    if last == "dies":
        os._exit(3)
    raise UserError(f"{last}: not allowed")


def test_each_call_has_a_process_of_its_own() -> None:
    assert len({fresh(os.getpid), fresh(os.getpid), os.getpid()}) == 3


@pytest.mark.parametrize(
    ("last", "status"),
    [
        ("x", "failed: UserError: x: not allowed"),
        ("dies", "failed: ChildProcessError: the process ended with status 3"),
    ],
)
def test_results_before_a_failure_stay(last: str, status: str) -> None:
    found, error = Measuring(counting, last).results()
    assert found == [1, 2] and error is not None and status_of(error) == status


def test_a_process_that_lasts_is_ended() -> None:
    found, error = Measuring(time.sleep, 600).results(seconds=0.5)
    assert found == [] and error is not None and status_of(error) == "ended: no time left"
    assert not multiprocessing.active_children()


def test_a_failure_is_raised_again() -> None:
    with pytest.raises(UserError, match="compressor") as caught:
        fresh(_refuse, "compressor.C=0")
    assert "in _refuse" in caught.value.__notes__[0]


def _refuse(value: str) -> None:
    raise UserError(value)


def test_out_of_memory_has_a_status_of_its_own() -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")
    assert status_of(error) == "out of memory: CUDA out of memory. Tried to allocate 2 GiB"
