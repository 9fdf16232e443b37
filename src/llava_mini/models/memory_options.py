"""What saves memory in training: set on a model before its stage is made, and without effect on what is learnt."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

if TYPE_CHECKING:
    from llava_mini.models.llava_mini import LlavaMiniForConditionalGeneration


def apply_memory_options(model: LlavaMiniForConditionalGeneration, options: dict[str, Any]) -> None:
    """Set what the model itself does to save memory; the optimiser and the frozen weights' type are others' work.

    Args:
        model: The model.
        options: The config's `memory`, of which `loss_chunk`, `vision_batch`, `offload_vision` and
            `activation_checkpointing` are read.
    """
    model.loss_chunk = options["loss_chunk"]
    model.vision_batch = options["vision_batch"]
    model.offload_vision = options["offload_vision"]
    if options["activation_checkpointing"]:
        checkpoint_layers(model)


def decoder_layers(model: LlavaMiniForConditionalGeneration) -> list[GradientCheckpointingLayer]:
    """The decoder layers of pre-fusion and of the language model."""
    return [*model.prefusion.layers, *model.get_decoder().layers]


def checkpoint_layers(model: LlavaMiniForConditionalGeneration) -> None:
    """FrameCacheConfig of every decoder layer what it reads, and compute the rest again in the backward pass.

    transformers' own switch for a whole model would take the vision tower in; and its layers recompute only in training
    mode, which a frozen part is not in, though gradients flow through it to what trains before it. So the layers'
    own mode follows the model's; what stands in them stays in the mode that it has, dropout included.
    """
    for layer in decoder_layers(model):
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    model.register_forward_pre_hook(_layers_follow)


def _layers_follow(model: LlavaMiniForConditionalGeneration, _given: tuple[Any, ...]) -> None:
    for layer in decoder_layers(model):
        layer.training = model.training
