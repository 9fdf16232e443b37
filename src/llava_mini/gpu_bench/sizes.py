"""Sizes of the measurements: the 7B shape for a GPU, and a tiny one that shows on a CPU that the command works."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import yaml

from llava_mini.bench.stopwatch import Trial, matmul_peak
from llava_mini.files import CONFIG_DIR
from llava_mini.models import LlavaMiniConfig


@dataclass(frozen=True)
class Size:
    """Shapes and counts of the measurements.

    Attributes:
        preset: Name of a preset of conf/model.
        dtype: Type of weights and states.
        batch: Number of images per batch.
        frames: Number of frames per video.
        text_tokens: Number of text tokens per prompt.
        further: Number of further tokens that are decoded.
        long_frames: Number of frames of the long video.
        matmul: Number of rows of the square matrices whose product gives the matmul peak.
        rounds: Number of rounds per measurement.
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
        """Return a LLaVA-Mini config: one vision token, four pre-fusion layers, the last token as placeholder."""
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
        """Return the trial that measures the matmul peak of the device in this dtype."""
        return matmul_peak(device, self.dtype, self.matmul)


REAL = Size("llava_mini_vicuna_7b", torch.bfloat16, 16, 64, 40, 64, 10_000, 8192, 5)
TINY = Size("tiny", torch.float32, 2, 3, 5, 3, 40, 64, 2)
LIMIT_GIB = 23.5  # usable memory of a 24 GB card
