"""The vision tower: any vision model of transformers, read at one of its layers, and the layout of views in a frame.

A frame has one view (the whole image) or five (2x2 crops row by row, then the whole). The crops' patches form one grid
of twice the side (high resolution).

Shapes: F frames, V views, N = n*n patches of a view, D width.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from llava_mini.token_layout import SINGLE_VIEW

_OFFLOAD_LOCK = threading.Lock()  # other threads may share a tower, and its weights are exchanged for those of a device


def build_vision_tower(vision_config: PreTrainedConfig) -> PreTrainedModel:
    """Build a tower with random weights in the shape of `vision_config`, in torch's default dtype like all parts.

    Raises:
        ValueError: for a tower that cannot be read at one of its layers.
    """
    return readable(AutoModel.from_config(vision_config, dtype=torch.get_default_dtype()))


def readable(vision_tower: PreTrainedModel) -> PreTrainedModel:
    """Make a tower one that `encode_views` can read, in place; its weights, their names and its outputs stay the same.

    Raises:
        ValueError: for a tower whose layers are not a single list of transformer layers.
    """
    count = vision_tower.config.num_hidden_layers
    lists = [(name, module) for name, module in vision_tower.named_modules() if isinstance(module, nn.ModuleList)]
    if [len(layers) for _, layers in lists] != [count]:
        raise ValueError(f"{type(vision_tower).__name__}: no single list of its {count} layers to read one of")
    name, layers = lists[0]
    vision_tower.set_submodule(name, TowerLayers(layers))
    return vision_tower


class TowerLayers(nn.ModuleList):
    """Layers of a vision tower, in the place of its own list.

    A tower that is called by itself runs all of them. For `encode_views`, its loop over the layers ends with a reader,
    in the place of the first layer that is not needed. How many are needed belongs to the call, not to the tower: so
    threads can share a tower, and its `state_dict` has the weights of all layers.
    """

    def __iter__(self) -> Iterator[Any]:
        layers, reader = list(super().__iter__()), _READER.get()
        if reader is None:
            return iter(layers)
        return iter([*layers[: reader.index], reader, *([] if reader.stop else layers[reader.index :])])


@dataclass
class _Reader:
    """Stands in a tower's loop like a layer, and collects the hidden states that reach it, class tokens included."""

    index: int
    stop: bool
    states: list[Tensor] = field(default_factory=list)

    def __call__(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        self.states.append(hidden_states)
        return hidden_states


_READER: ContextVar[_Reader | None] = ContextVar("reader of a vision tower", default=None)


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
        vision_tower: Vision tower to run, as `build_vision_tower` or `readable` returns it.
        pixel_values_F3HW: Normalized pixels, [F, 3, H, W].
        layer: Index into the tower's hidden states, as transformers counts them.
        num_patches: Number N of patches of a view.
        batch: Number of views that are encoded at once; None: all.
        offload: Whether a frozen tower's weights stay in host memory and are copied to the device for this call.
        stop: Whether no layer runs after the one that is read; False is for comparison.

    Raises:
        ValueError: for a tower that was not made readable.
    """
    frozen = not any(parameter.requires_grad for parameter in vision_tower.parameters())
    device, dtype = pixel_values_F3HW.device, vision_tower.dtype
    weights: dict[str, Tensor] = {}
    with ExitStack() as stack:
        if frozen:
            stack.enter_context(torch.no_grad())
        if dtype in (torch.float16, torch.bfloat16):
            stack.enter_context(torch.autocast(device.type, enabled=False))
            pixel_values_F3HW = pixel_values_F3HW.to(dtype)
        if offload and frozen:
            stack.enter_context(_OFFLOAD_LOCK)
            weights = _offloaded(vision_tower, device)
        reader = _Reader(layer % (vision_tower.config.num_hidden_layers + 1), stop)
        stack.callback(_READER.reset, _READER.set(reader))
        for part in pixel_values_F3HW.split(batch or max(len(pixel_values_F3HW), 1)):
            functional_call(vision_tower, weights, kwargs={"pixel_values": part})
        if not reader.states:
            raise ValueError(f"{type(vision_tower).__name__}: to read one of its layers, make it `readable` first")
        return torch.cat([state[:, -num_patches:] for state in reader.states])


def _offloaded(vision_tower: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """Copy the weights to `device`; the tower itself stays in host memory, where it is moved at the first call.

    A frozen tower does not change, so nothing has to be copied back. Buffers (some indices) stay where they are.
    """
    for weight in vision_tower.parameters():
        weight.data = weight.data.cpu()
    return {name: weight.to(device) for name, weight in vision_tower.named_parameters()}


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
    """Return what the compressor reads: the whole image [F, N, D], or the 2x2 crops as one grid [F, 4N, D]."""
    if views == SINGLE_VIEW:
        return features_FVND[:, 0]
    return merge_crops(features_FVND)


def prefusion_patches(features_FVND: Tensor, views: int) -> Tensor:
    """Return what pre-fusion reads: the whole image, or the crops' grid and then the whole: [F, N, D] or [F, 5N, D]."""
    if views == SINGLE_VIEW:
        return features_FVND[:, 0]
    return torch.cat([merge_crops(features_FVND), features_FVND[:, 4]], dim=1)
