"""How many frames go through vision tower, compressor and pre-fusion together when no gradients are recorded."""

from __future__ import annotations

import torch

from llava_mini.hardware import free_bytes
from llava_mini.models.configuration import LlavaMiniConfig
from llava_mini.models.language_model import head_dim

# Patches that are worked on together. More bring nothing: the matrices are large enough. On a CPU they cost: what a
# layer leaves is no longer in the caches for the next, and large tensors go back to the system each time (two frames of
# 576 patches are 15 % faster than 16). Fewer cost too: of 64 patches 18 frames take 0.7 of the time that 2 take.
_MOST_PATCHES = {"cpu": 2 * 576, "cuda": 64 * 576}
_SHARE = 0.25  # of free memory: the language model's cache and what lies around it need the rest


def frames_at_once(config: LlavaMiniConfig, views: int, dtype: torch.dtype, device: torch.device) -> int:
    """The size of a micro-batch: 1 at least, what fits into a quarter of the free memory at most."""
    fit = int(free_bytes(device) * _SHARE) // frame_bytes(config, views, dtype)
    most = _MOST_PATCHES.get(device.type, 16 * 576) // _patches(config, views)
    return max(1, min(fit, most))


def frame_bytes(config: LlavaMiniConfig, views: int, dtype: torch.dtype) -> int:
    """Bytes that a frame of `views` views takes while it is worked on, from its shapes: rather more than it will.

    The larger of tower and pre-fusion counts, as they run one after the other: a row between two layers, normalised, as
    queries and mixed, and three times in the MLP; pre-fusion keeps keys and values of all its layers besides.
    """
    vision, text = config.vision_config, config.text_config
    tower = 6 * vision.hidden_size + 2 * vision.intermediate_size
    layer = 6 * text.hidden_size + 3 * text.intermediate_size
    kept = 2 * text.num_key_value_heads * head_dim(text) * config.num_fusion_layers + 2 * text.hidden_size
    return _patches(config, views) * (max(tower, layer) + kept) * dtype.itemsize


def _patches(config: LlavaMiniConfig, views: int) -> int:
    vision = config.vision_config
    return views * int(vision.image_size // vision.patch_size) ** 2
