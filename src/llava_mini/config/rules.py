"""Rules between values that are valid one by one but not together. The types of the config apply them."""

from __future__ import annotations

from posixpath import normpath
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticCustomError

from llava_mini.files import is_url

if TYPE_CHECKING:  # they import this module
    from llava_mini.config.types import Data, Finetune, MemoryOptions, Model, Trainer

COMBINATION = "combination"  # type of the errors whose message is complete


def _refusal(key: str, value: Any, allowed: str, *, given: str, why: str) -> PydanticCustomError:
    """Return the error `given: why`."""
    fields = {"key": key, "value": value, "allowed": allowed}
    return PydanticCustomError(COMBINATION, "{message}", {"message": f"{given}: {why}", "fields": fields})


def check_model(model: Model) -> None:
    """Refuse values of `model` that cannot be combined."""
    for part in ("vision_tower", "language_model"):
        if model.weights == "parts" and getattr(model, part) is None:
            given, needed = f"model.weights=parts with model.{part}=null", "a folder or a Hub id (owner/name)"
            raise _refusal(f"model.{part}", None, needed, given=given, why=f"needed is {needed}")
    for key, shape in (("vision_config", model.vision_config), ("text_config", model.text_config)):
        if not shape and model.weights != "parts":
            why = "only with model.weights=parts does the part's own config say its shape"
            raise _refusal(f"model.{key}", shape, "a config", given=f"model.{key}={{}}", why=why)


def check_splits(data: Data) -> None:
    """Refuse a set that is in a split twice, as it would count double, and one of the toy world that has no size."""
    for split, sets in data.splits.items():
        key, names = f"data.{split}", set_names(sets)
        places = [normpath(name) for name in names]
        for number, name in enumerate(names):
            if places[number] in places[:number]:
                allowed = "each set once, its share a weight"
                raise _refusal(key, name, allowed, given=key, why=f"{name} is given twice; allowed is {allowed}")
            if data.world_seed is not None and not names_a_place(name) and name not in data.sizes:
                allowed = f"{', '.join(data.sizes)}, a path or a URL"
                raise _refusal(key, name, allowed, given=f"{key}={name}", why=f"allowed are {allowed}")


def check_length(trainer: Trainer) -> None:
    """Refuse a run without a length."""
    if trainer.max_steps is None and trainer.epochs is None:
        needed = "trainer.max_steps or trainer.epochs"
        raise _refusal("trainer.max_steps", None, needed, given="trainer.max_steps=null", why=f"needed is {needed}")


def check_batches(data: Data, trainer: Trainer) -> None:
    """Refuse a step's number of samples that its batches do not make up."""
    if trainer.global_batch is None:
        return
    at_once, ranks = data.batch_size * trainer.devices * trainer.num_nodes, trainer.devices * trainer.num_nodes
    times, left = divmod(trainer.global_batch, at_once)
    given = f"trainer.global_batch={trainer.global_batch} with data.batch_size={data.batch_size}"
    given += f" on {ranks} devices" if ranks > 1 else ""
    if left or not times:
        per_device = trainer.global_batch // ranks
        fitting = [size for size in range(1, per_device + 1) if trainer.global_batch % (size * ranks) == 0]
        allowed = f"data.batch_size={', '.join(map(str, fitting))}" if fitting else f"a multiple of {ranks}"
        raise _refusal("data.batch_size", data.batch_size, allowed, given=given, why=f"allowed is {allowed}")
    if trainer.accumulate_grad_batches not in (None, times):
        accumulate = trainer.accumulate_grad_batches
        given = f"{given} and trainer.accumulate_grad_batches={accumulate}"
        why = f"that takes {times} batches; leave trainer.accumulate_grad_batches out"
        raise _refusal("trainer.accumulate_grad_batches", accumulate, f"null, {times}", given=given, why=why)


def check_finetune(finetune: Finetune) -> None:
    """Refuse fine-tuning that is impossible."""
    if finetune.quantize is not None and finetune.language_model == "full":
        raise _refusal(
            "finetune.language_model",
            "full",
            "lora, frozen",
            given=f"finetune.quantize={finetune.quantize} with finetune.language_model=full",
            why="weights in 4 bits cannot train; allowed are finetune.language_model=lora, frozen",
        )
    for part, how in (("language_model", finetune.language_model), ("prefusion", finetune.prefusion)):
        if how == "lora" and finetune.lora is None:
            needed = "finetune.lora={rank: 16, alpha: 32, ...}"
            given = f"finetune.{part}=lora with finetune.lora=null"
            raise _refusal("finetune.lora", None, needed, given=given, why=f"needed is {needed}")


def check_precision(memory: MemoryOptions, trainer: Trainer) -> None:
    """Refuse frozen weights in half precision where the rest computes in full precision."""
    if memory.frozen_dtype is not None and trainer.precision == "32-true":
        given = f"memory.frozen_dtype={memory.frozen_dtype} with trainer.precision=32-true"
        allowed = "null, or a mixed precision"
        raise _refusal("memory.frozen_dtype", memory.frozen_dtype, allowed, given=given, why=f"allowed are {allowed}")


def check_fsdp(trainer: Trainer, memory: MemoryOptions, finetune: Finetune) -> None:
    """Refuse what does not work when the model is sharded across ranks (FSDP)."""
    refusals: list[tuple[bool, str, Any, str]] = [
        (trainer.devices * trainer.num_nodes < 2, "trainer.devices", trainer.devices, "several devices"),
        (
            trainer.precision == "16-mixed",
            "trainer.precision",
            trainer.precision,
            "32-true, bf16-mixed, bf16-true, 16-true",
        ),
        (finetune.quantize is not None, "finetune.quantize", finetune.quantize, "null"),
        (memory.optimizer != "adamw", "memory.optimizer", memory.optimizer, "adamw"),
        (memory.offload_vision, "memory.offload_vision", "true", "false"),
    ]
    for refused, key, value, allowed in refusals:
        if refused:
            given = f"{key}={value} with trainer.strategy=fsdp"
            raise _refusal(key, value, allowed, given=given, why=f"allowed are {allowed}")


def set_names(sets: str | list[str] | dict[str, float] | None) -> list[str]:
    """Return the names of a split's shard sets."""
    return [sets] if isinstance(sets, str) else list(sets or [])


def names_a_place(name: str) -> bool:
    """Whether a shard set is named by an absolute path or a URL, not as a folder in `data.folder`."""
    return name.startswith("/") or is_url(name)
