"""Sharding of a model's weights across the ranks that train it (FSDP2), and gathering of the whole weights."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.models.memory_options import decoder_layers


def shard(model: LlavaMiniForConditionalGeneration, mesh: DeviceMesh) -> None:
    """Shard every weight across the ranks of `mesh`; a decoder layer is gathered when it runs, the rest at once.

    A layer is gathered by all ranks together, so every rank must run every layer, even if its batch has no image.
    """
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.runs_all_layers = True


class Gathered(Callback):
    """Stores the whole weights when training has ended, on rank 0 and in host memory, before the shards are freed."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.state = trainer.strategy.lightning_module_state_dict()
