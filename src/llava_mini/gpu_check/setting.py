"""Build the model of a trial, ready to train, on a device or, for a plan, on meta."""

from __future__ import annotations

from typing import Any

import torch
import yaml
from torch import Tensor, nn

from llava_mini import finetune
from llava_mini.batch import VLMBatch
from llava_mini.files import CONFIG_DIR
from llava_mini.finetune.quantization import Linear4bit, nf4_linear
from llava_mini.gpu_check.trials import Trial
from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.models.initialization import default_dtype
from llava_mini.models.memory_options import apply_memory_options

_ALWAYS_WHOLE = ("projector", "compressor")


class PlainStage(nn.Module):
    """Stage 2 without Lightning: the part of the interface of `VLMStage` that a plan and a step need.

    Args:
        model: Model with its adapters and 4-bit layers in place.
        optimizer: Name of the optimizer, as in the config's `memory.optimizer`.
    """

    betas = (0.9, 0.999)

    def __init__(self, model: LlavaMiniForConditionalGeneration, optimizer: str):
        super().__init__()
        self.model, self.optimizer = model, optimizer

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return one group with all trainable parameters."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr": 1e-5, "weight_decay": 0.0}]

    def forward_loss(self, batch: VLMBatch) -> tuple[Tensor, Tensor]:
        """Return loss and logits of a batch."""
        outputs = self.model(**batch.model_inputs())
        return outputs.loss, outputs.logits


def half_type(trial: Trial) -> torch.dtype:
    """Return the dtype of mixed precision and of frozen weights."""
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}[trial.half]


def build_stage(trial: Trial, device: torch.device | str, linear_4bit: Linear4bit = nf4_linear) -> PlainStage:
    """Build a stage with random weights: trainable weights in float32, frozen weights in half precision or 4 bits.

    Args:
        trial: Trial whose model is built.
        device: Device of the weights; "meta" for a plan.
        linear_4bit: Function that makes a 4-bit layer, as in `llava_mini.finetune.apply`.
    """
    half = half_type(trial)
    preset = yaml.safe_load((CONFIG_DIR / "model" / f"{trial.model}.yaml").read_text())
    with torch.device(device), default_dtype(half):  # in float32 a 7B model alone would not fit
        model = LlavaMiniForConditionalGeneration(trial.model_config(preset))
    for part in (*_ALWAYS_WHOLE, *(p for p in ("language_model", "prefusion") if trial.finetune.of(p) == "full")):
        model.get_submodule(part).float()
    finetune.apply(model, trial.finetune, compute_dtype=half, frozen_dtype=half, linear_4bit=linear_4bit)
    apply_memory_options(model, **trial.memory)
    stage = PlainStage(model, trial.optimizer).train()
    model.vision_tower.eval()
    return stage
