"""The vision tower: any vision model of transformers, read at one of its layers, and the layout of views in a frame.

A frame has one view (the whole image) or five (2x2 crops row by row, then the whole). The crops' patches form one grid
of twice the side (high resolution).

Shapes: F frames, V views, N = n*n patches of a view, D width.
"""

import math
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from llava_mini.token_layout import SINGLE_VIEW

_TOWER_LOCK = threading.RLock()  # held while a tower is hooked and cut short, because other threads may share it


def build_vision_tower(vision_config: PreTrainedConfig) -> PreTrainedModel:
    """Build a tower with random weights in the shape of `vision_config`, in torch's default dtype like all parts."""
    return AutoModel.from_config(vision_config, dtype=torch.get_default_dtype())


def patches_per_side(vision_config: PreTrainedConfig) -> int:
    """Number n of patches along a side of a view."""
    return vision_config.image_size // vision_config.patch_size


def encode_views(
    vision_tower: PreTrainedModel,
    pixel_values_F3HW: Tensor,
    layer: int,
    num_patches: int,
    batch: int | None = None,
    offload: bool = False,
    stop: bool = True,
) -> Tensor:
    """Return the hidden states of one layer, without class tokens: [F, 3, H, W] -> [F, N, D].

    No other layer's states are stored. A tower whose weights are stored in half precision computes in it, also under
    autocast. A frozen tower records no gradients.

    Args:
        vision_tower: Vision tower to run.
        pixel_values_F3HW: Normalized pixels, [F, 3, H, W].
        layer: Index into the tower's hidden states, as transformers counts them.
        num_patches: Number N of patches of a view.
        batch: Number of views that are encoded at once; None: all.
        offload: Whether a frozen tower's weights stay in host memory and are copied to the device for this call.
        stop: Whether no layer runs after the one that is read; False is for comparison.
    """
    frozen = not any(parameter.requires_grad for parameter in vision_tower.parameters())
    device, dtype = pixel_values_F3HW.device, vision_tower.dtype
    with ExitStack() as stack:
        if frozen:
            stack.enter_context(torch.no_grad())
        if dtype in (torch.float16, torch.bfloat16):
            stack.enter_context(torch.autocast(device.type, enabled=False))
            pixel_values_F3HW = pixel_values_F3HW.to(dtype)
        stack.enter_context(_TOWER_LOCK)
        states = stack.enter_context(_states_of(vision_tower, layer, stop))
        weights = _offloaded(vision_tower, device) if offload and frozen else {}
        for part in pixel_values_F3HW.split(batch or max(len(pixel_values_F3HW), 1)):
            functional_call(vision_tower, weights, kwargs={"pixel_values": part})
        return torch.cat([state[:, -num_patches:] for state in states])


def _offloaded(vision_tower: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """Copy the weights to `device`; the tower itself stays in host memory, where it is moved at the first call.

    A frozen tower does not change, so nothing has to be copied back. Buffers (some indices) stay where they are.
    """
    for weight in vision_tower.parameters():
        weight.data = weight.data.cpu()
    return {name: weight.to(device) for name, weight in vision_tower.named_parameters()}


@contextmanager
def _states_of(vision_tower: PreTrainedModel, layer: int, stop: bool) -> Iterator[list[Tensor]]:
    """Yield a list to which every call of the tower adds the hidden states of one layer, class tokens included.

    With `stop`, the tower has no layers after that one in the meantime.

    Raises:
        ValueError: for a tower whose layers are not a single list of transformer layers.
    """
    count = vision_tower.config.num_hidden_layers
    lists = [(name, module) for name, module in vision_tower.named_modules() if isinstance(module, nn.ModuleList)]
    if [len(layers) for _, layers in lists] != [count]:
        raise ValueError(f"{type(vision_tower).__name__}: no single list of its {count} layers to read one of")
    name, layers = lists[0]
    index, states = layer % (count + 1), list[Tensor]()
    if index == 0:
        handle = layers[0].register_forward_pre_hook(lambda _layer, given: states.append(given[0]))
    else:
        handle = layers[index - 1].register_forward_hook(lambda _layer, _given, output: states.append(output))
    place, _, leaf = name.rpartition(".")
    parent = vision_tower.get_submodule(place)
    if stop:
        setattr(parent, leaf, layers[: max(index, 1)])
    try:
        yield states
    finally:
        setattr(parent, leaf, layers)
        handle.remove()


def merge_crops(features_FVND: Tensor) -> Tensor:
    """Arrange the four crops of every frame as one grid of patches, row-major: [F, 5, N, D] -> [F, 4N, D].

    Example (n = 1, crops a b c d and the whole w): a b / c d, so the grid reads a, b, c, d.
    """
    crops = features_FVND[:, :4]
    frames, _, num_patches, width = crops.shape
    side = math.isqrt(num_patches)
    grid = crops.reshape(frames, 2, 2, side, side, width).permute(0, 1, 3, 2, 4, 5)
    return grid.reshape(frames, 4 * num_patches, width)


def compression_grid(features_FVND: Tensor, views: int) -> Tensor:
    """Return what the compressor reads of frames with `views` views: the whole image, or the 2x2 crops as one grid.

    Args:
        features_FVND: Features, [F, V, N, D], V >= views.
        views: Number of views, 1 or 5.

    Returns:
        Features, [F, N, D] or [F, 4N, D].
    """
    if views == SINGLE_VIEW:
        return features_FVND[:, 0]
    return merge_crops(features_FVND)


def prefusion_patches(features_FVND: Tensor, views: int) -> Tensor:
    """Return what pre-fusion reads: the whole image, or the crops' grid and then the whole: [F, N, D] or [F, 5N, D]."""
    if views == SINGLE_VIEW:
        return features_FVND[:, 0]
    return torch.cat([merge_crops(features_FVND), features_FVND[:, 4]], dim=1)
