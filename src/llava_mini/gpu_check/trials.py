"""The trials: shapes, fine-tuning methods and memory limits of the cards that this project is for.

Values of conf/ are repeated here, because the check runs where no package that composes configs is installed. A test
compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from llava_mini.models import LlavaMiniConfig
from llava_mini.settings import FULL, Finetune, Lora

QUERY = {"_target_": "llava_mini.models.compressors.query.QueryCompressor", "C": 1, "num_heads": 8}
NONE = {"_target_": "llava_mini.models.compressors.none.NoCompressor"}
LORA = replace(FULL, language_model="lora", lora=Lora(rank=128, alpha=256, dropout=0.05, dora=False))
QLORA = replace(LORA, quantize="nf4")
FROZEN = replace(FULL, language_model="frozen")
_RTX_5090, _RTX_4090, _V100 = 31.4, 23.5, 31.7  # hardware.memory_gib
_MEMORY = {"activation_checkpointing": True, "loss_chunk": 1024, "vision_batch": 4, "offload_vision": False}
_PLAIN_MEMORY = {"activation_checkpointing": False, "loss_chunk": None, "vision_batch": None, "offload_vision": False}


@dataclass(frozen=True)
class Trial:
    """Training steps of one config.

    Attributes:
        name: Name shown in the report.
        model: Name of a preset of conf/model.
        finetune: Settings of fine-tuning.
        batch_size: Number of samples per step.
        limit_gib: Memory in GiB that the process may use; None for all memory of the card.
        half: Type of mixed precision and of frozen weights.
        optimizer: Name of the optimizer, as in the config's `memory.optimizer`.
        memory: Memory options of the model, as in the config's `memory`.
        compressor: Configuration of the model's compressor.
        fusion_layers: Number of pre-fusion layers, N_fusion.
        text_tokens: Number of text tokens per sample, without placeholders.
    """

    name: str
    model: str
    finetune: Finetune
    batch_size: int
    limit_gib: float | None = _RTX_5090
    half: str = "bfloat16"
    optimizer: str = "adamw_8bit"
    memory: Mapping[str, Any] = field(default_factory=lambda: _MEMORY)
    compressor: Mapping[str, Any] = field(default_factory=lambda: QUERY)
    fusion_layers: int = 4
    text_tokens: int = 300

    def model_config(self, preset: Mapping[str, Any]) -> LlavaMiniConfig:
        """Return the configuration of the trial's model.

        Args:
            preset: Content of the YAML file of `model`.
        """
        vocab_size = preset["text_config"].get("vocab_size", 64)
        return LlavaMiniConfig(
            vision_config=dict(preset["vision_config"]),
            text_config={**preset["text_config"], "vocab_size": vocab_size},
            image_token_id=vocab_size,
            vision_feature_layer=preset["vision_feature_layer"],
            compressor=dict(self.compressor),
            num_fusion_layers=self.fusion_layers,
        )


_7B = "llava_mini_vicuna_7b"
TRIALS = (
    Trial("7B QLoRA, batch 16 on 32 GB", _7B, QLORA, 16),
    Trial("7B QLoRA in float16, batch 16 on 32 GB (V100's way)", _7B, QLORA, 16, limit_gib=_V100, half="float16"),
    Trial("7B QLoRA, batch 8 on 24 GB", _7B, QLORA, 8, limit_gib=_RTX_4090),
    Trial("7B QLoRA, pre-fusion by LoRA, batch 1 on 12 GB", _7B, replace(QLORA, prefusion="lora"), 1, limit_gib=11.5),
    Trial("7B LoRA, batch 4 on 32 GB", _7B, LORA, 4),
    Trial(
        "7B LLaVA-v1.5 (576 tokens, no pre-fusion), LoRA, batch 1, nothing saved", _7B, LORA, 1, limit_gib=None,
        optimizer="adamw", memory=_PLAIN_MEMORY, compressor=NONE, fusion_layers=0,
    ),
    Trial("7B frozen language model, batch 4 on 32 GB", _7B, FROZEN, 4),
    Trial("8B (Llama-3.1) QLoRA, batch 8 on 32 GB", "llava_mini_llama31_8b", QLORA, 8),
    Trial("0.5B (Qwen2.5) full, batch 4 on 24 GB", "llava_mini_qwen25_0_5b", FULL, 4, limit_gib=_RTX_4090),
)  # fmt: skip
# The same methods at the size of the tiny model. They show on a CPU that the command works, and nothing about a GPU.
TINY_TRIALS = (
    Trial("tiny QLoRA", "tiny", replace(QLORA, prefusion="lora"), 2, limit_gib=None, text_tokens=40),
    Trial("tiny LoRA", "tiny", LORA, 2, limit_gib=None, text_tokens=40),
    Trial("tiny full", "tiny", FULL, 2, limit_gib=None, optimizer="adamw", memory=_PLAIN_MEMORY, text_tokens=40),
)
