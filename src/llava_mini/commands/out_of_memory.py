"""A run that ends for want of memory says in one line at which step, what is kept, what to change, cheapest first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llava_mini.hardware import is_out_of_memory, reason_of
from llava_mini.plan.memory_options import Change
from llava_mini.sweep.grid import config_hash

ANOTHER_RUN = "*"  # marks what changes the run's result, so that it cannot go on in its folder


class RunOutOfMemoryError(RuntimeError):
    """Training needs more memory than there is; the message is for the user."""


@contextmanager
def oom_as_run_error(
    config: dict[str, Any], step: Callable[[], int], advice: Callable[[], list[Change]]
) -> Iterator[None]:
    """Turn what torch raises for want of memory into one line.

    Args:
        config: Of the run.
        step: Gives the optimiser steps that are done.
        advice: Gives what the config can change to need less memory, in order; asked only when memory is wanting.

    Raises:
        RunOutOfMemoryError: in place of torch's or Python's own error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch's own error on a GPU is a RuntimeError too
        if not is_out_of_memory(error):
            raise
        raise RunOutOfMemoryError(message(config, step(), error, advice())) from error


def message(config: dict[str, Any], step: int, error: BaseException, advice: list[Change]) -> str:
    """The line for the user."""
    last = Path(config["run_dir"]) / "checkpoints" / "last.ckpt"
    kept = f"the last checkpoint is good: {last}" if last.exists() else "no checkpoint was due yet"
    told = f"out of memory at step {step} ({reason_of(error)}); {kept}; "
    if not advice:
        return f"{told}nothing is left to turn on: shorten data.max_length, or take a smaller model or a larger card"
    named = _named(config, advice)
    marked = any(item.endswith(ANOTHER_RUN) for item in named)
    return f"{told}try, one after another, cheapest first: {'; '.join(named)}" + (
        f" ({ANOTHER_RUN} in another run_dir)" if marked else ""
    )


def _named(config: dict[str, Any], advice: list[Change]) -> list[str]:
    """Changes as they are written, each marked whose run cannot go on in the folder of this one."""
    here = config_hash(config)
    return [f"{change.text}{'' if config_hash(change.of(config)) == here else ANOTHER_RUN}" for change in advice]
