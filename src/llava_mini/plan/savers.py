"""Savers in the order of what they cost in time, as changes of a config that does not have them yet."""

from __future__ import annotations

from typing import Any

from torch import nn

from llava_mini.finetune import is_adapter, num_parameters
from llava_mini.stages.base import VLMStage

Config = dict[str, Any]
Change = tuple[dict[str, Any], str]


def offers(config: Config, stage: VLMStage) -> list[Change]:
    """What is not on yet, cheapest in time first: keys of `savers` with their values, and the cost in words.

    Args:
        config: The whole config.
        stage: Over its model; what is computed again is a share of the work that its parameters make.
    """
    savers, precision = config["savers"], config["trainer"]["precision"]
    tower = not config["data"]["features"]
    half = {"16-mixed": "float16", "bf16-mixed": "bfloat16"}.get(precision)
    sharded = config["trainer"]["strategy"] == "fsdp"
    every: list[tuple[bool, Change]] = [
        (savers["frozen_dtype"] is None and half is not None, ({"frozen_dtype": half}, "none")),
        (savers["optimizer"] == "adamw" and not sharded, ({"optimizer": "adamw_8bit"}, "none")),
        (savers["vision_batch"] is None and tower, ({"vision_batch": 4}, "none to speak of")),
        (savers["loss_chunk"] is None, ({"loss_chunk": 256}, f"+{share_of_head(stage):.1%}, the head's product again")),
        (
            not savers["checkpointing"],
            ({"checkpointing": True}, f"+{share_of_layers(stage):.0%}, the decoder layers' forward pass again"),
        ),
        (
            not savers["offload_vision"] and tower and not sharded,
            ({"offload_vision": True}, "a copy of the tower to the card every step"),
        ),
        (
            savers["optimizer"] in ("adamw", "adamw_8bit") and not sharded,
            ({"optimizer": "paged_adamw_8bit"}, "copies of state every step"),
        ),
    ]
    return [change for applies, change in every if applies]


def share_of_layers(stage: VLMStage) -> float:
    """The decoder layers' forward pass as a share of a step's products, counted by their parameters."""
    return _size(_decoder(stage)) / _products(stage)


def share_of_head(stage: VLMStage) -> float:
    """The head's forward pass likewise; half of the tokens go through it."""
    return _size([stage.model.get_output_embeddings()]) / 2 / _products(stage)


def _decoder(stage: VLMStage) -> list[nn.Module]:
    return [*stage.model.prefusion.layers, *stage.model.get_decoder().layers]


def _products(stage: VLMStage) -> float:
    """Forward pass, gradients of activations, gradients of what trains: one product each."""
    modules = [*_decoder(stage), stage.model.get_output_embeddings()]
    trained = sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad)
    return 2 * _size(modules) + trained


def _size(modules: list[nn.Module]) -> int:
    adapters = (p.numel() for module in modules for name, p in module.named_parameters() if is_adapter(name))
    return sum(num_parameters(module) for module in modules) + sum(adapters)
