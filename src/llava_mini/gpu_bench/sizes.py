"""What is measured: the 7B shape for a GPU, and a tiny one that shows on a CPU that the command works."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import yaml

from llava_mini.bench.stopwatch import Trial, matmul_peak
from llava_mini.files import CONFIG_DIR
from llava_mini.models import LlavaMiniConfig


@dataclass(frozen=True)
class Size:
    """Shapes and counts.

    Attributes:
        preset: Of conf/model.
        dtype: Of weights and states.
        batch: Images of a batch.
        frames: Of a video.
        text_tokens: Of a prompt.
        further: Tokens that are decoded.
        long_frames: Of the long video.
        matmul: Rows of the square matrices whose products are the limit.
        rounds: Of each measurement.
    """

    preset: str
    dtype: torch.dtype
    batch: int
    frames: int
    text_tokens: int
    further: int
    long_frames: int
    matmul: int
    rounds: int

    def config(self) -> LlavaMiniConfig:
        """Of LLaVA-Mini with one token and four pre-fusion layers; the placeholder is the vocabulary's last word."""
        preset = yaml.safe_load((CONFIG_DIR / "model" / f"{self.preset}.yaml").read_text())
        vocab_size = preset["text_config"].setdefault("vocab_size", 64)
        return LlavaMiniConfig(
            vision_config=preset["vision_config"],
            text_config=preset["text_config"],
            image_token_id=vocab_size - 1,
            vision_feature_layer=preset["vision_feature_layer"],
            num_fusion_layers=4,
        )

    def peak(self, device: torch.device) -> Trial:
        """The device's own limit in this type."""
        return matmul_peak(device, self.dtype, self.matmul)


REAL = Size("llava_mini_vicuna_7b", torch.bfloat16, 16, 64, 40, 64, 10_000, 8192, 5)
TINY = Size("tiny", torch.float32, 2, 3, 5, 3, 40, 64, 2)
LIMIT_GIB = 23.5  # what a card of 24 GB has
