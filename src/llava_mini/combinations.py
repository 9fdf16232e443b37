"""Checks for config values that are valid one by one but not together. They run before anything is built."""

from __future__ import annotations

from typing import Any

from llava_mini.errors import UserError


def check_combinations(config: dict[str, Any]) -> None:
    """Check a config for values that cannot be combined. Each value has already passed the checks of `schema`.

    Raises:
        UserError: two values cannot be combined; it names them and what is allowed.
    """
    _check_finetune(config)
    if config["trainer"]["strategy"] == "fsdp":
        _check_fsdp(config)


def _check_finetune(config: dict[str, Any]) -> None:
    """Refuse combinations that cannot be fine-tuned."""
    finetune = config["finetune"]
    frozen_dtype, precision = config["memory"]["frozen_dtype"], config["trainer"]["precision"]
    if finetune["quantize"] is not None and finetune["language_model"] == "full":
        raise UserError(
            f"finetune.quantize={finetune['quantize']} with finetune.language_model=full: "
            "weights in 4 bits cannot train; allowed are finetune.language_model=lora, frozen"
        )
    adapted = [part for part in ("language_model", "prefusion") if finetune[part] == "lora"]
    if adapted and finetune["lora"] is None:
        raise UserError(
            f"finetune.{adapted[0]}=lora with finetune.lora=null: needed is finetune.lora={{rank: 16, alpha: 32, ...}}"
        )
    if frozen_dtype is not None and precision == "32-true":
        raise UserError(
            f"memory.frozen_dtype={frozen_dtype} with trainer.precision=32-true: allowed are null, or a mixed precision"
        )


def _check_fsdp(config: dict[str, Any]) -> None:
    """Refuse values that do not work when the model is sharded across ranks (FSDP)."""
    trainer, memory, quantize = config["trainer"], config["memory"], config["finetune"]["quantize"]
    alone = trainer["devices"] * trainer["num_nodes"] < 2
    refusals = [
        (alone, f"trainer.devices={trainer['devices']}", "several devices"),
        (trainer["precision"] == "16-mixed", "trainer.precision=16-mixed", "32-true, bf16-mixed, bf16-true, 16-true"),
        (quantize is not None, f"finetune.quantize={quantize}", "null"),
        (memory["optimizer"] != "adamw", f"memory.optimizer={memory['optimizer']}", "adamw"),
        (memory["offload_vision"], "memory.offload_vision=true", "false"),
    ]
    for refused, given, allowed in refusals:
        if refused:
            raise UserError(f"{given} with trainer.strategy=fsdp: allowed are {allowed}")
