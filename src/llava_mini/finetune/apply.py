"""Apply the config's `finetune` to a model: quantize, add adapters, freeze, cast; in this order and in place."""

from __future__ import annotations

import torch
from torch import nn

from llava_mini.finetune.adapters import adapted_parts, add_adapters, is_adapter, trains
from llava_mini.finetune.quantization import Linear4bit, nf4_linear, quantize_linears
from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.settings import Finetune

_COMPUTE = {"16": torch.float16, "bf16": torch.bfloat16, "32": torch.float32}


def compute_dtype(precision: str) -> torch.dtype:
    """Return the type in which 4-bit layers compute, for a `trainer.precision` like 16-mixed, bf16-mixed or 32-true."""
    return _COMPUTE[precision.split("-")[0]]


def apply(
    model: LlavaMiniForConditionalGeneration,
    finetune: Finetune,
    *,
    compute_dtype: torch.dtype,
    frozen_dtype: torch.dtype | None,
    linear_4bit: Linear4bit = nf4_linear,
) -> None:
    """Prepare a model with its weights loaded and pre-fusion initialized for fine-tuning as the config says.

    What trains stays float32. The vision tower and what `finetune` freezes are frozen; a stage may freeze more.

    Args:
        model: Model on any device; on the meta device with a `linear_4bit` that can be built there.
        finetune: Config group: `language_model` (full, lora, frozen), `prefusion` (full, lora), `quantize` (nf4 or
            None), `lora`.
        compute_dtype: Type in which 4-bit layers compute.
        frozen_dtype: Type of the frozen weights; None leaves it unchanged.
        linear_4bit: Function that makes the 4-bit layer, a subclass of nn.Linear, from a linear layer and the compute
            type.

    Raises:
        UserError: PEFT or bitsandbytes is needed and missing.
    """
    language_model = model.language_model
    if finetune.quantize is not None:
        quantize_linears(language_model.get_decoder(), compute_dtype, linear_4bit)
        # By this flag PEFT and transformers know that a layer's weight is packed; PEFT then uses its own 4-bit layer.
        language_model.is_loaded_in_4bit = model.is_loaded_in_4bit = True
    for part in adapted_parts(model, finetune):
        assert finetune.lora is not None  # the config's types see to it
        add_adapters(model.get_submodule(part), finetune.lora)
    model.vision_tower.requires_grad_(False)
    for part in ("language_model", "prefusion"):
        for name, parameter in model.get_submodule(part).named_parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(trains(name, part, finetune))
    cast_frozen(model, frozen_dtype)


def cast_frozen(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Store the frozen weights that are not packed in `dtype`; None leaves them unchanged.

    Only parameters are cast: buffers, like the frequencies of rotary embeddings, need their precision.
    """
    if dtype is None:
        return
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point() and not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)


def num_parameters(module: nn.Module) -> int:
    """Return the number of parameters without adapters, each counted once; packed weights count as unpacked ones."""
    counts: dict[int, int] = {}
    for path, each in module.named_modules():
        for name, parameter in each.named_parameters(recurse=False):
            if not is_adapter(f"{path}.{name}"):
                packed = isinstance(each, nn.Linear) and name == "weight"
                counts[id(parameter)] = each.in_features * each.out_features if packed else parameter.numel()
    return sum(counts.values())
