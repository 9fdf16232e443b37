"""Optimizers for training: AdamW, and bitsandbytes' variants of it, whose state takes a quarter of the memory."""

from __future__ import annotations

from typing import Any

import torch

from llava_mini.errors import refused
from llava_mini.finetune.packages import require

_PACKAGE = "bitsandbytes.optim"
_EIGHT_BIT = {"adamw_8bit": "AdamW8bit", "paged_adamw_8bit": "PagedAdamW8bit"}


def build_optimizer(
    name: str, groups: list[dict[str, Any]], betas: tuple[float, float], device: torch.device, fused: bool = False
) -> torch.optim.Optimizer:
    """Build the optimizer that `memory.optimizer` names.

    With 8 bits, parameters of fewer than 4096 values have a state of full precision (bitsandbytes).

    Args:
        name: Name of the optimizer: adamw, adamw_8bit, paged_adamw_8bit.
        groups: Parameter groups with learning rate and weight decay.
        betas: Betas of AdamW.
        device: Device of the parameters. Paged state moves between a GPU's memory and the host's.
        fused: Whether adamw changes a tensor in one pass over memory. The result is the same up to rounding; on a CPU
            it takes a third to a sixth of the time. In mixed precision Lightning clips no gradients of such an
            optimizer.

    Raises:
        UserError: without bitsandbytes, or for paged state without a GPU.
    """
    check_optimizer(name, device.type)
    if name == "adamw":
        return torch.optim.AdamW(groups, betas=betas, fused=fused or None)
    package = require(_PACKAGE, f"memory.optimizer={name}")
    optimizer: torch.optim.Optimizer = getattr(package, _EIGHT_BIT[name])(groups, betas=betas)
    return optimizer


def check_optimizer(name: str, device: str) -> None:
    """Refuse an optimizer that is not available on a type of device.

    Raises:
        UserError: without bitsandbytes, or for paged state without a GPU.
    """
    if name == "paged_adamw_8bit" and device != "cuda":
        raise refused("memory.optimizer", name, f"needs a GPU, and this is {device}", allowed="adamw, adamw_8bit")
    if name != "adamw":
        require(_PACKAGE, f"memory.optimizer={name}")
