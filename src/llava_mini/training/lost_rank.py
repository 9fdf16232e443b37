"""End a run with a one-line message when one of its ranks stops answering for `trainer.rank_timeout` seconds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from llava_mini.config import Config
from llava_mini.run.folder import kept_of
from llava_mini.run.ranks import own_rank

# Messages of Gloo and NCCL when another rank does not answer.
_LOST = re.compile(
    r"timed out|connection (closed|reset) by peer|broken pipe|collective operation timeout|ncclRemoteError", re.I
)


class LostRankError(RuntimeError):
    """Error that another rank of the run has stopped answering. The message is for the user."""


@contextmanager
def lost_rank_as_error(config: Config, step: Callable[[], int]) -> Iterator[None]:
    """Turn torch's error when another rank does not answer or has ended into one line; `step` counts optimizer steps.

    Raises:
        LostRankError: another rank does not answer or has ended; it replaces torch's own error.
    """
    try:
        yield
    except RuntimeError as error:
        if not torch.distributed.is_initialized() or not (found := _LOST.search(str(error))):
            raise
        waited = f"trainer.rank_timeout={config.trainer.rank_timeout} seconds is how long ranks wait"
        raise LostRankError(
            f"rank {own_rank()}: another rank stopped answering at step {step()} ({found[0]}); {waited}; "
            f"{kept_of(config)}; the same command continues from there"
        ) from error
