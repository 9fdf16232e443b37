"""Number of frames that go through vision tower, compressor and pre-fusion together when no gradients are recorded."""

from __future__ import annotations

import torch

from llava_mini.hardware import free_bytes
from llava_mini.models.configuration import LlavaMiniConfig
from llava_mini.models.language_model import head_dim
from llava_mini.models.vision_tower import patches_per_side

# Patches that are processed together. More bring no gain: the matrices are large enough. On a CPU more cost time: the
# output of a layer is no longer in the caches for the next layer, and large tensors are returned to the system each
# time (two frames of 576 patches are 15 % faster than 16). Fewer cost time too: of frames of 64 patches, 18 together
# take 0.7 of the time that 2 together take.
_MOST_PATCHES = {"cpu": 2 * 576, "cuda": 64 * 576}
_SHARE = 0.25  # of free memory; the language model's cache and everything around it need the rest


def frames_at_once(config: LlavaMiniConfig, views: int, dtype: torch.dtype, device: torch.device) -> int:
    """Number of frames in a micro-batch: at least 1, at most what fits into a quarter of the free memory."""
    fit = int(free_bytes(device) * _SHARE) // frame_bytes(config, views, dtype)
    most = _MOST_PATCHES.get(device.type, 16 * 576) // _patches(config, views)
    return max(1, min(fit, most))


def frame_bytes(config: LlavaMiniConfig, views: int, dtype: torch.dtype) -> int:
    """Bytes that a frame of `views` views needs while it is processed, by its shapes; rather an overestimate.

    The larger of vision tower and pre-fusion counts, because they run one after the other. A row takes memory between
    two layers, normalized, as queries and mixed, and three times in the MLP. In addition, pre-fusion stores the keys
    and values of all its layers.
    """
    vision, text = config.vision_config, config.text_config
    tower = 6 * vision.hidden_size + 2 * vision.intermediate_size
    layer = 6 * text.hidden_size + 3 * text.intermediate_size
    kept = 2 * text.num_key_value_heads * head_dim(text) * config.num_fusion_layers + 2 * text.hidden_size
    return _patches(config, views) * (max(tower, layer) + kept) * dtype.itemsize


def _patches(config: LlavaMiniConfig, views: int) -> int:
    return views * patches_per_side(config.vision_config) ** 2
