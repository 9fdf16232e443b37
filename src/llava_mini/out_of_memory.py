"""Errors that mean that a device or the host is out of memory, turned into one line for the user."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llava_mini.errors import UserError

_NO_HOST_MEMORY = ("DefaultCPUAllocator", "not enough memory", "std::bad_alloc")  # in torch's out-of-memory messages


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device or the host is out of memory."""
    import torch  # takes a second to import, and commands use this module before they have checked their arguments

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_HOST_MEMORY)


def reason_of(error: BaseException) -> str:
    """Return the first line of an error's message, at most 160 characters; without a message its type's name."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:160]


@contextmanager
def oom_as(error_of: Callable[[str], Exception]) -> Iterator[None]:
    """Replace an out-of-memory error of torch or Python within the block by another one.

    Args:
        error_of: Function that makes the other error from the reason, see `reason_of`.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch's own error on a GPU is a RuntimeError too
        if not is_out_of_memory(error):
            raise
        raise error_of(reason_of(error)) from error


@contextmanager
def oom_as_user_error(advice: str = "") -> Iterator[None]:
    """Turn an out-of-memory error into one line.

    Args:
        advice: End of the line, what needs less memory.

    Raises:
        UserError: torch or Python ran out of memory; it replaces their own error.
    """
    with oom_as(lambda reason: UserError(f"out of memory ({reason}){f': {advice}' if advice else ''}")):
        yield
