"""The learning rate over a run: it rises evenly and then falls as a cosine.

As transformers' `get_cosine_with_min_lr_schedule_with_warmup`, whose import takes as long as torch's: it brings
transformers' Trainer, PEFT and bitsandbytes along.
"""

from __future__ import annotations

import math
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_and_cosine(optimizer: Optimizer, warmup_ratio: float, steps: int, min_lr_ratio: float = 0.0) -> LambdaLR:
    """A scheduler of an optimiser's rates.

    Args:
        optimizer: With the peak rates.
        warmup_ratio: Share of all steps with a rising rate.
        steps: Of the run.
        min_lr_ratio: Rate at the end, as a share of the peak.
    """
    return LambdaLR(optimizer, partial(_share, warmup=round(warmup_ratio * steps), steps=steps, last=min_lr_ratio))


def _share(step: int, *, warmup: int, steps: int, last: float) -> float:
    """Of the peak rate at a step."""
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * progress))
