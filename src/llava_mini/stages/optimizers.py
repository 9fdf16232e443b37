"""The optimisers of training: AdamW, and bitsandbytes' forms of it whose state takes a quarter of the memory."""

from __future__ import annotations

from typing import Any

import torch

from llava_mini.errors import UserError
from llava_mini.finetune.packages import require

_EIGHT_BIT = {"adamw_8bit": "AdamW8bit", "paged_adamw_8bit": "PagedAdamW8bit"}


def build_optimizer(
    name: str, groups: list[dict[str, Any]], betas: tuple[float, float], device: torch.device
) -> torch.optim.Optimizer:
    """The optimiser of a name in `savers.optimizer`.

    In 8 bits, parameters of fewer than 4096 values keep a state of full precision (bitsandbytes).

    Args:
        name: adamw, adamw_8bit, paged_adamw_8bit.
        groups: With rate and weight decay.
        betas: AdamW's.
        device: Where the parameters are. Paged state moves between a GPU's memory and the host's.

    Raises:
        UserError: without bitsandbytes, or for paged state without a GPU.
    """
    if name == "adamw":
        return torch.optim.AdamW(groups, betas=betas)
    if name == "paged_adamw_8bit" and device.type != "cuda":
        raise UserError(f"savers.optimizer={name}: needs a GPU; allowed on {device.type} are adamw, adamw_8bit")
    optimizer: torch.optim.Optimizer = getattr(
        require("bitsandbytes.optim", f"savers.optimizer={name}"), _EIGHT_BIT[name]
    )(groups, betas=betas)
    return optimizer
