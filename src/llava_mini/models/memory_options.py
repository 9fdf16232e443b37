"""Options that save memory in training: set on a model before its stage is made, without effect on what is learned."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

if TYPE_CHECKING:
    from llava_mini.models.llava_mini import LlavaMiniForConditionalGeneration


def apply_memory_options(
    model: LlavaMiniForConditionalGeneration,
    *,
    activation_checkpointing: bool = False,
    loss_chunk: int | None = None,
    vision_batch: int | None = None,
    offload_vision: bool = False,
) -> None:
    """Set the memory options that the model itself implements; optimizer and type of frozen weights are set elsewhere.

    Decoder layers may compute their activations again in the backward pass, `loss_chunk` tokens may have logits at once
    and the vision tower may encode `vision_batch` views at once (None: all), and a frozen vision tower may wait in host
    memory.
    """
    model.loss_chunk, model.vision_batch, model.offload_vision = loss_chunk, vision_batch, offload_vision
    if activation_checkpointing:
        checkpoint_layers(model)


def decoder_layers(model: LlavaMiniForConditionalGeneration) -> list[GradientCheckpointingLayer]:
    """Return the decoder layers of pre-fusion and of the language model."""
    return [*model.prefusion.layers, *model.get_decoder().layers]


def checkpoint_layers(model: LlavaMiniForConditionalGeneration) -> None:
    """Store only the input of every decoder layer, and compute the rest again in the backward pass.

    transformers' own switch for a whole model would include the vision tower. Its layers also recompute only in
    training mode. A frozen part is not in training mode, though gradients flow through it to what trains before it. So
    the layers' own mode follows the model's. The modules inside the layers stay in their mode, dropout included.
    """
    for layer in decoder_layers(model):
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    model.register_forward_pre_hook(_layers_follow)


def _layers_follow(model: LlavaMiniForConditionalGeneration, _given: tuple[Any, ...]) -> None:
    for layer in decoder_layers(model):
        layer.training = model.training
