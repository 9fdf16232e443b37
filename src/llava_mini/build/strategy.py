"""How the ranks of a run share its work: each holds the whole model (DDP), or a share of every weight (FSDP).

FSDP is torch's second one, through Lightning's ModelParallelStrategy: it deals each parameter by itself, so frozen
weights in half precision may lie beside trained ones in full precision, and gradients are clipped by their norm as
ever. Lightning's FSDPStrategy refuses both.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy


def build_strategy(config: dict[str, Any], ranks: int) -> Strategy | str:
    """Lightning's strategy for a run.

    With FSDP a checkpoint is one file as without: the ranks' shares are gathered in rank 0's host memory, and what does
    not train is left out. So a run may go on with another number of ranks, and everything reads it as it reads others.

    Args:
        config: The run's.
        ranks: Processes that train together.
    """
    timeout = timedelta(seconds=config["trainer"]["rank_timeout"])
    if config["trainer"]["strategy"] == "fsdp":
        return ModelParallelStrategy(
            data_parallel_size=ranks, tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=timeout
        )
    # A rank whose batch shows no image leaves the projector and all that is read through it unused.
    return DDPStrategy(find_unused_parameters=True, timeout=timeout) if ranks > 1 else "auto"
