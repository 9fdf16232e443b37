"""Merge adapters into the weights that they were trained with, so that a plain model is left."""

from __future__ import annotations

from typing import Any

from torch import nn

from llava_mini.finetune.adapters import ADAPTER, adapted_parts
from llava_mini.finetune.packages import require
from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.settings import Finetune


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
