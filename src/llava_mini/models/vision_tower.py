"""The vision tower: any vision model of transformers, read at one of its layers, and the layout of views in a frame.

A frame has one view (the whole image) or five (2x2 crops row by row, then the whole). The crops' patches are laid out
as one grid of twice the side (high resolution).

Shapes: F frames, V views, N = n*n patches of a view, D width.
"""

import math

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

SINGLE_VIEW, HD_VIEWS = 1, 5


def build_vision_tower(vision_config: PreTrainedConfig) -> PreTrainedModel:
    """Random weights in the shape of `vision_config`, in torch's default dtype as all other parts are."""
    return AutoModel.from_config(vision_config, dtype=torch.get_default_dtype())


def patches_per_side(vision_config: PreTrainedConfig) -> int:
    """n: patches along a side of a view."""
    return vision_config.image_size // vision_config.patch_size


def encode_views(vision_tower: nn.Module, pixel_values_F3HW: Tensor, layer: int, num_patches: int) -> Tensor:
    """Hidden states of one layer, without class tokens: [F, 3, H, W] -> [F, N, D]."""
    outputs = vision_tower(pixel_values=pixel_values_F3HW, output_hidden_states=True)
    return outputs.hidden_states[layer][:, -num_patches:]


def merge_crops(features_FVND: Tensor) -> Tensor:
    """The four crops of every frame as one grid of patches, row-major: [F, 5, N, D] -> [F, 4N, D].

    Example (n = 1, crops a b c d and the whole w): a b / c d, so the grid reads a, b, c, d.
    """
    crops = features_FVND[:, :4]
    frames, _, num_patches, width = crops.shape
    side = math.isqrt(num_patches)
    grid = crops.reshape(frames, 2, 2, side, side, width).permute(0, 1, 3, 2, 4, 5)
    return grid.reshape(frames, 4 * num_patches, width)


def compression_grid(features_FVND: Tensor, views: int) -> Tensor:
    """What the compressor reads of frames with `views` views: the whole image, or the 2x2 crops as one grid.

    Args:
        features_FVND: [F, V, N, D], V >= views.
        views: 1 or 5.

    Returns:
        [F, N, D] or [F, 4N, D].
    """
    if views == SINGLE_VIEW:
        return features_FVND[:, 0]
    return merge_crops(features_FVND)


def prefusion_patches(features_FVND: Tensor, views: int) -> Tensor:
    """What pre-fusion reads: the whole image, or the crops' grid and then the whole: [F, N, D] or [F, 5N, D]."""
    if views == SINGLE_VIEW:
        return features_FVND[:, 0]
    return torch.cat([merge_crops(features_FVND), features_FVND[:, 4]], dim=1)
