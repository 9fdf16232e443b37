"""How the ranks of a run share its work: each has the whole model (DDP), or a shard of every weight (FSDP).

FSDP is torch's second version (FSDP2), through Lightning's ModelParallelStrategy. It shards each parameter by itself,
so frozen weights in half precision may be next to trained ones in full precision, and gradients are clipped by their
norm as usual. Lightning's FSDPStrategy refuses both.
"""

from __future__ import annotations

from datetime import timedelta

from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from llava_mini.config.types import Trainer


def build_strategy(trainer: Trainer, ranks: int) -> Strategy | str:
    """Return Lightning's strategy for a run of so many ranks.

    With FSDP a checkpoint is one file as without: the ranks' shards are gathered in rank 0's host memory, and what does
    not train is left out. So a run may resume with another number of ranks, and everything reads its checkpoints like
    any others.
    """
    timeout = timedelta(seconds=trainer.rank_timeout)
    if trainer.strategy == "fsdp":
        return ModelParallelStrategy(
            data_parallel_size=ranks, tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=timeout
        )
    # A rank whose batch contains no image leaves the projector and all that is read through it unused.
    return DDPStrategy(find_unused_parameters=True, timeout=timeout) if ranks > 1 else "auto"
