"""Types and limits of the config groups that name no class. The class signature checks a group with a `_target_`.

`check` reads a whole resolved config and needs no torch, so a mistake is reported at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from posixpath import normpath
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticCustomError

from llava_mini.errors import UserError


def _only(allowed: str) -> WrapValidator:
    """Return a validator that reports one message for a value of several possible types, not one message per type."""

    def validate(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError as error:
            raise PydanticCustomError("allowed", "allowed are {allowed}", {"allowed": allowed}) from error

    return WrapValidator(validate)


Positive = Annotated[int, Field(ge=1, strict=True)]
Count = Annotated[int, Field(ge=0, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Name = Annotated[str, Field(min_length=1)]
Turns = Literal["conversation", "independent"]
Split = Literal["train", "val", "test"]
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]  # learning rate, weight decay
Share = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
# One shard set, several that are pooled into one, or several that are mixed by weight.
Sets = Annotated[
    Name | Annotated[list[Name], Field(min_length=1)] | Annotated[dict[Name, Weight], Field(min_length=1)],
    _only("a set, [set, ...] and {set: weight above 0, ...}"),
]
Template = Annotated[Name | dict[str, str | bool], _only("the name of a template and {field: text, ...}")]
# Folders whose tensors are loaded in this order (all other weights stay random), or the parts that model.hub names.
Weights = Annotated[Literal["random", "hub"] | list[Name], _only("random, hub and [folder, ...]")]
Features = Annotated[Flag | Name, _only("true, false and a folder")]
Precision = Literal["32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true"]


@dataclass
class Fusion:
    """Number of pre-fusion layers (N_fusion) and their initialization."""

    num_layers: Count
    init: Literal["copy", "random"]


@dataclass
class Order:
    """Order of compression, projection and pre-fusion (REFERENCE section 2)."""

    compress_before_projection: bool
    fuse_compressed_tokens: bool


@dataclass
class Hub:
    """Pretrained parts of a model: Hub ids or folders."""

    vision_tower: Name
    language_model: Name


@dataclass
class Model:
    """Shapes of the model's parts, and where their weights and the tokenizer are."""

    vision_config: dict[str, Any]
    text_config: dict[str, Any]
    vision_feature_layer: int
    image_processor: dict[str, Any]
    hub: Hub | None
    tokenizer: Name
    weights: Weights
    start: Literal["uncompressed", "stage1"] | None = None  # toy world only: which of its checkpoints `weights` names


@dataclass
class Data:
    """Which shard sets are read, and how their conversations and images become tokens and pixels."""

    folder: Name
    cache_dir: Name | None  # where shards from URLs are stored
    world_seed: Count | None  # None: the shard sets in `folder` exist already and are the user's own
    sizes: dict[str, Positive]
    splits: dict[Split, Sets | None]
    template: Template
    turns: Turns
    views: Literal["square", "pad", "hd"]
    max_frames: Positive | None
    shuffle_frames: Flag
    batch_size: Positive
    eval_batch_size: Positive
    num_workers: Count
    max_length: Annotated[int, Field(ge=2, strict=True)]  # one token to read and one to predict
    max_bad_fraction: Share
    features: Features
    kinds: list[str]


@dataclass
class Lora:
    """Low-rank adapters (PEFT's LoraConfig)."""

    rank: Positive
    alpha: Positive
    dropout: Annotated[float, Field(ge=0, lt=1)]
    dora: Flag


@dataclass
class Finetune:
    """Which weights of the language model and of pre-fusion train, and how the frozen ones are stored."""

    language_model: Literal["full", "lora", "frozen"]
    prefusion: Literal["full", "lora"]
    quantize: Literal["nf4"] | None
    lora: Lora | None


@dataclass
class Hardware:
    """GPU that a run is planned for."""

    memory_gib: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
    torch_build: Literal["cpu", "cu126", "cu130"] | None


@dataclass
class MemoryOptions:
    """Options that save memory in training."""

    activation_checkpointing: Flag
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"]
    loss_chunk: Positive | None
    frozen_dtype: Literal["float16", "bfloat16"] | None
    vision_batch: Positive | None
    offload_vision: Flag


@dataclass
class Trainer:
    """Length, precision, devices and intervals of a training run. Steps are optimizer steps."""

    max_steps: Positive
    accumulate_grad_batches: Positive
    gradient_clip_val: Annotated[float, Field(gt=0)] | None
    precision: Precision
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"]
    strategy: Literal["auto", "fsdp"]
    devices: Positive  # processes per machine that train together, each on its own device; they share the CPUs
    num_nodes: Positive
    rank_timeout: Positive  # seconds
    val_every: Positive | None
    checkpoint_every: Positive
    threads: Positive


@dataclass
class Tracking:
    """Reporting to MLflow."""

    enabled: bool
    uri: Name | None
    experiment: Name
    log_model: Flag
    parent_run_id: Name | None


@dataclass
class World:
    """Training of the toy world's pretrained parts."""

    out: Name
    stages: Annotated[list[Literal[0, 1, 2]], Field(min_length=1)]
    vision_scenes: Positive
    vision_boards: Positive
    vision_val_scenes: Positive
    vision_batch_size: Positive


TYPES: dict[str, Any] = {
    "seed": Annotated[int, Field(ge=0, le=2**32 - 1, strict=True)],
    "experiment_name": Name,
    "run_dir": Name,
    "fusion": Fusion,
    "order": Order,
    "model": Model,
    "data": Data,
    "finetune": Finetune,
    "hardware": Hardware,
    "memory": MemoryOptions,
    "trainer": Trainer,
    "tracking": Tracking,
    "world": World,
}


def check(config: dict[str, Any]) -> None:
    """Check every value of a resolved config that no class signature checks.

    Raises:
        UserError: a value is not allowed; it names the key, its value and what is allowed.
    """
    for name, kind in TYPES.items():
        try:
            TypeAdapter(kind).validate_python(config[name])
        except ValidationError as error:
            raise UserError(describe(name, error)) from error
    _check_model(config["model"])
    data = config["data"]
    for split, sets in data["splits"].items():
        _check_different(split, set_names(sets))
        for name in set_names(sets):
            if data["world_seed"] is not None and not names_a_place(name) and name not in data["sizes"]:
                raise UserError(f"data.splits.{split}={name}: allowed are {', '.join(data['sizes'])}, a path or a URL")


def _check_different(split: str, names: list[str]) -> None:
    """Refuse a shard set that is given twice, because it would silently count double."""
    places = [normpath(name) for name in names]
    for number, name in enumerate(names):
        if places[number] in places[:number]:
            raise UserError(f"data.splits.{split}: {name} is given twice; allowed is each set once, its share a weight")


def _check_model(model: dict[str, Any]) -> None:
    """Refuse values of the model that cannot be combined.

    Raises:
        UserError: values cannot be combined; it names them.
    """
    if model["weights"] == "hub" and model["hub"] is None:
        raise UserError(
            "model.weights=hub with model.hub=null: needed is model.hub={vision_tower: PLACE, language_model: PLACE}"
        )
    for key in ("vision_config", "text_config"):
        if not model[key] and model["weights"] != "hub":
            raise UserError(f"model.{key}={{}}: only with model.weights=hub does the part's own config say its shape")


def set_names(sets: str | list[str] | dict[str, float] | None) -> list[str]:
    """Return the names of a split's shard sets."""
    return [sets] if isinstance(sets, str) else list(sets or [])


def names_a_place(name: str) -> bool:
    """Whether a shard set is named by an absolute path or a URL, not as a folder in `data.folder`."""
    return name.startswith("/") or is_url(name)


def is_url(text: str) -> bool:
    """Whether `text` is a URL and not a local path."""
    return "://" in text


def describe(key: str, error: ValidationError) -> str:
    """Return the first error of pydantic as one line, with the full key."""
    first = error.errors()[0]
    path = ".".join(
        [key, *(str(part) for part in first["loc"] if isinstance(part, str) and not part.startswith("function"))]
    )
    return f"{path}={first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
