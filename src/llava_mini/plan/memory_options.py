"""Changes to a config that reduce memory, ordered by what they cost in time.

Changes that leave the result of a run unchanged, or nearly, come first; then a smaller batch, accumulated to the same
step; changes that train other weights come last. A plan and a run that ended out of memory use this same list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from llava_mini.config.types import Config, Lora
from llava_mini.finetune import is_adapter, num_parameters
from llava_mini.models.memory_options import decoder_layers
from llava_mini.settings import conf
from llava_mini.stages.base import VLMStage


@dataclass(frozen=True)
class Change:
    """Change of a config."""

    text: str  # as typed on the command line
    values: Mapping[str, Mapping[str, Any]]  # by group of the config
    cost: str  # in time; `{head}` and `{layers}` are the values of `shares`

    def of(self, config: Config) -> Config:
        """Return the config with this change."""
        return config.changed(self.values)


def memory_changes(config: Config) -> list[Change]:
    """Changes of `memory` that are not enabled yet, cheapest in time first."""
    now, precision = config.memory, config.trainer.precision
    tower = not config.data.features
    half = {"16-mixed": "float16", "bf16-mixed": "bfloat16"}.get(precision)
    sharded, on_card = config.trainer.strategy == "fsdp", config.trainer.accelerator != "cpu"
    every: list[tuple[bool, str, Any, str]] = [
        (now.frozen_dtype is None and half is not None, "frozen_dtype", half, "none"),
        (now.optimizer == "adamw" and on_card and not sharded, "optimizer", "adamw_8bit", "none"),
        (now.vision_batch is None and tower, "vision_batch", 4, "none to speak of"),
        (now.loss_chunk is None, "loss_chunk", 1024, "+{head:.1%}, the head's product again"),
        (
            not now.activation_checkpointing,
            "activation_checkpointing",
            True,
            "+{layers:.0%}, the decoder layers' forward pass again",
        ),
        (
            not now.offload_vision and tower and not sharded,
            "offload_vision",
            True,
            "a copy of the tower to the card every step",
        ),
        (
            now.optimizer != "paged_adamw_8bit" and on_card and not sharded,
            "optimizer",
            "paged_adamw_8bit",
            "copies of its state every step",
        ),
    ]
    return [
        Change(f"memory.{key}={str(value).lower()}", {"memory": {key: value}}, cost)
        for applies, key, value, cost in every
        if applies
    ]


def smaller_batch(config: Config, fits: int) -> Change | None:
    """Change to the largest part of the batch that fits, accumulated to the same step; None if there is none."""
    now = config.data.batch_size
    size = next((size for size in range(min(fits, now - 1), 0, -1) if now % size == 0), None)
    if size is None:
        return None
    values: dict[str, dict[str, Any]] = {"data": {"batch_size": size}}
    if config.trainer.global_batch is None:
        values["trainer"] = {"accumulate_grad_batches": config.accumulate * now // size}
    return Change(
        " ".join(f"{group}.{key}={value}" for group, own in values.items() for key, value in own.items()),
        values,
        "smaller products, the same samples in a step",
    )


def finetunings(config: Config) -> list[Change]:
    """Changes that train fewer weights, or store them in 4 bits; each is for a config with those before it."""
    now, rates = config.finetune, config.stage.get("learning_rates", {})
    quantizable = now.quantize is None and config.trainer.strategy != "fsdp"
    found: list[Change] = []
    values: dict[str, Any]
    if rates.get("language_model") is None or now.language_model == "frozen":
        if quantizable:
            first = "" if now.language_model == "frozen" else "finetune=frozen_llm "
            values = {"language_model": "frozen", "quantize": "nf4"}
            cost = "weights are unpacked for every product"
            found.append(Change(f"{first}finetune.quantize=nf4", {"finetune": values}, cost))
        return found
    adapters: Lora | None = now.lora
    if now.language_model == "full":
        adapters = _adapters("lora")
        values = {"language_model": "lora", "lora": adapters}
        found.append(Change("finetune=lora", {"finetune": values}, "none; adapters train instead of all weights"))
    if quantizable:
        adapters = _adapters("qlora") if adapters and adapters.dora else adapters
        values = {"language_model": "lora", "quantize": "nf4", "lora": adapters}
        cost = "weights are unpacked for every product; adapters train"
        found.append(Change("finetune=qlora", {"finetune": values}, cost))
    if now.prefusion == "full" and rates.get("prefusion") is not None and config.fusion.num_layers > 0:
        cost = "none; adapters train instead of pre-fusion's weights"
        found.append(Change("finetune.prefusion=lora", {"finetune": {"prefusion": "lora"}}, cost))
    return found


def _adapters(name: str) -> Lora:
    """Adapters of a preset of conf/finetune."""
    return Lora(**conf(f"finetune/{name}")["lora"])


def shares(stage: VLMStage) -> dict[str, float]:
    """Forward passes as shares of a step's products, counted by the parameters in them.

    `layers` is for the decoder layers, `head` for the language model's head, through which half of the tokens go.
    """
    layers, head = decoder_layers(stage.model), stage.model.get_output_embeddings()
    trained = sum(p.numel() for module in (*layers, head) for p in module.parameters() if p.requires_grad)
    products = 2 * _size([*layers, head]) + trained  # forward pass and gradients of activations; gradients of weights
    return {"layers": _size(layers) / products, "head": _size([head]) / 2 / products}


def _size(modules: list[nn.Module]) -> int:
    adapters = (p.numel() for module in modules for name, p in module.named_parameters() if is_adapter(name))
    return sum(num_parameters(module) for module in modules) + sum(adapters)
