"""A small model in every way of fine-tuning: planned on meta, or real and watched while it trains."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from llava_mini import finetune
from llava_mini.models import LlavaMiniConfig, LlavaMiniForConditionalGeneration
from llava_mini.models.memory_options import apply_memory_options
from llava_mini.plan.fakes import linear_4bit
from llava_mini.plan.ledger import FROZEN, QUANTIZED, TRAINED, Ledger, Watching
from llava_mini.plan.planner import Peak
from llava_mini.plan.sample import Sample, batch_of
from llava_mini.plan.step import Mode, training_step
from llava_mini.settings import FULL, Finetune, Lora
from llava_mini.stages.base import VLMStage
from llava_mini.stages.instruction import InstructionStage
from llava_mini.stages.optimizers import build_optimizer

VOCAB = 500
SHAPE: dict[str, Any] = {
    "vision_config": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "patch_size": 8,
        "image_size": 64,
    },
    "text_config": {
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "vocab_size": VOCAB,
    },
    "image_token_id": VOCAB,
    "num_fusion_layers": 1,
}
LORA = Lora(rank=8, alpha=16, dropout=0.05, dora=False)
FINETUNE = {
    "full": FULL,
    "lora": replace(FULL, language_model="lora", lora=LORA),
    "qlora": Finetune(language_model="lora", prefusion="lora", quantize="nf4", lora=LORA),
    "qdora": replace(FULL, language_model="lora", quantize="nf4", lora=replace(LORA, dora=True)),
}
RATES: dict[str, float | None] = {"projector": 1e-4, "compressor": 1e-4, "prefusion": 1e-4, "language_model": 1e-4}


@pytest.fixture
def stage_of() -> Callable[..., VLMStage]:
    """stage_of("lora", meta=True, half=None, optimizer="adamw", **options): a stage over a small model."""

    def make(
        kind: str, *, meta: bool, half: torch.dtype | None = None, optimizer: str = "adamw", **options: Any
    ) -> VLMStage:
        torch.manual_seed(0)
        with torch.device("meta" if meta else "cpu"):
            model = LlavaMiniForConditionalGeneration(LlavaMiniConfig(**SHAPE))
        apply_memory_options(model, **options)
        stand_in = {"linear_4bit": linear_4bit} if meta else {}
        finetune.apply(model, FINETUNE[kind], compute_dtype=half or torch.float32, frozen_dtype=half, **stand_in)
        stage = InstructionStage(model=model, learning_rates=RATES, finetune=FINETUNE[kind], optimizer=optimizer)
        finetune.cast_frozen(model, half)
        return stage

    return make


@pytest.fixture
def watched() -> Callable[..., Peak]:
    """watched(stage, mode, sample, size): the third real step's peak, entered by the storages that torch makes."""

    def run(stage: VLMStage, mode: Mode, sample: Sample, size: int) -> Peak:
        ledger = Ledger(VOCAB)
        for weight in (*stage.parameters(), *stage.buffers()):
            ledger.note(weight, TRAINED if weight.requires_grad else FROZEN)
        for module in stage.modules():
            state = getattr(getattr(module, "weight", None), "quant_state", None)
            if state is not None:
                packed = (module.weight.data, state.absmax, state.code, state.offset)
                for tensor in (*packed, state.state2.absmax, state.state2.code):
                    ledger.note(tensor, QUANTIZED)
        optimizer = build_optimizer(stage.optimizer, stage.parameter_groups(), stage.betas, torch.device("cpu"))
        with Watching(ledger):
            for _ in range(3):
                batch = batch_of(stage.model, sample, size)
                ledger.begin()
                training_step(stage, optimizer, batch, mode, ledger)
        return Peak(ledger.peak, ledger.breakdown())

    return run
