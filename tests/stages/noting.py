"""What tests of training share: rates of all parts, a copy of the weights, callbacks that note."""

from typing import Any

import torch
from lightning import Callback

ALL_RATES = {"projector": 1e-3, "compressor": 2e-3, "prefusion": 3e-3, "language_model": 4e-3}


def weights(stage: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in stage.model.state_dict().items()}


class Losses(Callback):
    """Notes the loss of every batch."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(float(outputs["batch_loss"]))


class Gradients(Callback):
    """Notes the gradients that the optimizer has been given last, clipped where they are."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen = {name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None}
