"""Models of sizes that NF4's blocks of 64 do and do not divide, and adapters that have been moved from zero."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from llava_mini.settings import FULL, Finetune, Lora

LORA = Lora(rank=4, alpha=8, dropout=0.0, dora=False)


@pytest.fixture
def spec_of() -> Callable[..., Finetune]:
    """spec_of(lora={changes}, **changes): the config's `finetune` for LoRA of rank 4 on the language model."""

    def make(lora: dict[str, Any] | None = None, **changes: Any) -> Finetune:
        return replace(FULL, **{"language_model": "lora", "lora": replace(LORA, **(lora or {})), **changes})

    return make


@pytest.fixture
def stir() -> Callable[[Any], None]:
    """stir(model): adapters as if they had been trained; fresh ones add nothing."""

    def change(model: Any) -> None:
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
                if "lora_magnitude_vector" in name:
                    parameter.mul_(1 + 0.2 * torch.rand(parameter.shape, generator=generator))

    return change
