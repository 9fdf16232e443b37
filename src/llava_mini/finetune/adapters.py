"""Low-rank adapters on linear layers of decoder layers, by PEFT, and which parameters train with them.

PEFT injects them in place: `q_proj` becomes a layer that contains the old one (`base_layer`) next to `lora_A` and
`lora_B`, so the model's classes and all other names stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from llava_mini.finetune.packages import require
from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.settings import Finetune, Lora

# All linear layers of a decoder layer, as Llama, Mistral and Qwen2 name them; not the head (`lm_head`).
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ADAPTER = "default"
_MARK = "lora_"  # in the names of all parameters that PEFT's LoRA and DoRA add
_PARTS = ("language_model", "prefusion")


def adapted_parts(model: LlavaMiniForConditionalGeneration, finetune: Finetune) -> list[str]:
    """Return the parts of this model that have adapters; pre-fusion without layers has none."""
    wanted = [part for part in _PARTS if finetune.of(part) == "lora"]
    return [part for part in wanted if part != "prefusion" or len(model.prefusion.layers)]


def is_adapted(finetune: Finetune) -> bool:
    """Whether a run saves adapters and trained parts, because it does not train a plain model."""
    return finetune.quantize is not None or "lora" in (finetune.language_model, finetune.prefusion)


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return _MARK in name


def trains(name: str, part: str, finetune: Finetune) -> bool:
    """Whether a parameter trains, if it belongs to a part that the stage trains.

    Parts that `finetune` does not name train in full.
    """
    how = finetune.of(part)
    return how == "full" or (how == "lora" and is_adapter(name))


def check_packages(finetune: Finetune) -> None:
    """Check before anything is built that the packages that a run's fine-tuning needs are installed.

    Raises:
        UserError: PEFT or bitsandbytes is needed and missing.
    """
    if "lora" in (finetune.language_model, finetune.prefusion):
        require("peft", "finetune.lora")
    if finetune.quantize is not None:
        require("bitsandbytes", f"finetune.quantize={finetune.quantize}")


def add_adapters(part: nn.Module, lora: Lora) -> None:
    """Add new adapters to a part's decoder layers, also on meta; what they add is zero until they have been trained.

    Raises:
        UserError: PEFT is missing.
    """
    peft = require("peft", "finetune.lora")
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_dora=lora.dora,
        target_modules=list(TARGETS),
    )
    on_meta = any(parameter.device.type == "meta" for parameter in part.parameters())
    peft.inject_adapter_in_model(config, part, ADAPTER, low_cpu_mem_usage=on_meta)
    for name, parameter in part.named_parameters():
        if is_adapter(name):
            parameter.data = parameter.data.to(torch.float32)


def adapter_state(part: nn.Module) -> dict[str, torch.Tensor]:
    """Return an adapter's tensors under the names that PEFT gives them in a file."""
    peft = require("peft", "finetune.lora")
    state = peft.get_peft_model_state_dict(part, adapter_name=ADAPTER, save_embedding_layers=False)
    return {f"base_model.model.{name}": tensor for name, tensor in state.items()}


def load_adapter_state(part: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Load what `adapter_state` returned into a part's adapters, which have the same names and shapes."""
    peft = require("peft", "finetune.lora")
    plain = {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}
    peft.set_peft_model_state_dict(part, plain, adapter_name=ADAPTER)


def merge_adapters(model: LlavaMiniForConditionalGeneration, finetune: Finetune) -> None:
    """Merge adapters in place, in the precision of the weights; layers, names and classes are then a plain model's.

    Under its adapters the model has plain linear layers (`rounded_linear` for a base in 4 bits), which PEFT would
    otherwise round to 4 bits again.

    Raises:
        UserError: PEFT is missing.
    """
    for part in adapted_parts(model, finetune):
        _merge(model.get_submodule(part))
    model.language_model.is_loaded_in_4bit = model.is_loaded_in_4bit = False


def _merge(part: Any) -> None:
    layer_class = require("peft.tuners.lora", "finetune.lora").LoraLayer
    for parent in list(part.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, layer_class):
                merged: Any = child
                merged.merge(adapter_names=[ADAPTER])
                plain: nn.Module = merged.get_base_layer()
                setattr(parent, name, plain)
    del part.peft_config
