"""A run that ends for want of memory says in one line at which step, what is kept, what to change, cheapest first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

_OF_A_CPU = ("DefaultCPUAllocator", "not enough memory")
ANOTHER_RUN = "*"  # marks what changes the run's result, so that it cannot go on in its folder


class RunOutOfMemoryError(RuntimeError):
    """Training needs more memory than there is; the message is for the user."""


@contextmanager
def out_of_memory_told(config: dict[str, Any], step: Callable[[], int]) -> Iterator[None]:
    """Turn what torch raises for want of memory into one line.

    Args:
        config: Of the run.
        step: Gives the optimiser steps that are done.

    Raises:
        RunOutOfMemoryError: in place of torch's or Python's own error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch's own error on a GPU is a RuntimeError too
        if not is_out_of_memory(error):
            raise
        raise RunOutOfMemoryError(message(config, step(), error)) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is for want of memory, of a device or of the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OF_A_CPU)


def message(config: dict[str, Any], step: int, error: BaseException) -> str:
    """The line for the user."""
    last = Path(config["run_dir"]) / "checkpoints" / "last.ckpt"
    kept = f"the last checkpoint is good: {last}" if last.exists() else "no checkpoint was due yet"
    reason = next(iter(str(error).splitlines()), type(error).__name__)[:160]
    told = f"out of memory at step {step} ({reason}); {kept}; "
    if not (advice := memory_advice(config)):
        return f"{told}every saver is on: shorten data.max_length, or take a smaller model or a larger card"
    marked = any(item.endswith(ANOTHER_RUN) for item in advice)
    return f"{told}try, cheapest first: {'; '.join(advice)}" + (
        f" ({ANOTHER_RUN} in another run_dir)" if marked else ""
    )


def memory_advice(config: dict[str, Any]) -> list[str]:
    """What is not on yet, in the order of what it costs in time and precision; see `ANOTHER_RUN`."""
    savers, batch = config["savers"], config["data"]["batch_size"]
    accumulate = 2 * config["trainer"]["accumulate_grad_batches"]
    offers = [
        (savers["vision_batch"] is None and not config["data"]["features"], "savers.vision_batch=4"),
        (savers["loss_chunk"] is None, "savers.loss_chunk=1024"),
        (savers["optimizer"] == "adamw", f"savers.optimizer=paged_adamw_8bit{ANOTHER_RUN}"),
        (not savers["checkpointing"], "savers.checkpointing=true"),
        (config["finetune"]["quantize"] is None, f"finetune=qlora{ANOTHER_RUN}"),
        (batch > 1, f"data.batch_size={batch // 2} trainer.accumulate_grad_batches={accumulate}{ANOTHER_RUN}"),
    ]
    return [text for applies, text in offers if applies]
