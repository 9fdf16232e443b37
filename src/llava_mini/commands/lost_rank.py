"""A run one of whose ranks stops answering ends with one line, after `trainer.rank_timeout` seconds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from llava_mini.commands.ranks import own_rank

# How Gloo and NCCL say that another rank does not answer.
_LOST = re.compile(
    r"timed out|connection (closed|reset) by peer|broken pipe|collective operation timeout|ncclRemoteError", re.I
)


class LostRankError(RuntimeError):
    """Another rank of the run has stopped answering; the message is for the user."""


@contextmanager
def lost_rank_as_error(config: dict[str, Any], step: Callable[[], int]) -> Iterator[None]:
    """Turn what torch raises when another rank does not answer, or is gone, into one line.

    Args:
        config: Of the run.
        step: Gives the optimizer steps that are done.

    Raises:
        LostRankError: in place of torch's own error.
    """
    try:
        yield
    except RuntimeError as error:
        if not torch.distributed.is_initialized() or not (found := _LOST.search(str(error))):
            raise
        last = Path(config["run_dir"]) / "checkpoints" / "last.ckpt"
        kept = f"the last checkpoint is good: {last}" if last.exists() else "no checkpoint was due yet"
        waited = f"trainer.rank_timeout={config['trainer']['rank_timeout']} seconds is how long ranks wait"
        raise LostRankError(
            f"rank {own_rank()}: another rank stopped answering at step {step()} ({found[0]}); {waited}; {kept}; "
            "the same command goes on from there"
        ) from error
