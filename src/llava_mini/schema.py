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


def _doc(text: str) -> Any:
    """Return what a key is for, one line of `--help` and of the reference."""
    return Field(description=text)


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

    num_layers: Annotated[Count, _doc("N_fusion, number of pre-fusion layers; 0 for none")]
    init: Annotated[
        Literal["copy", "random"],
        _doc("start of layers that no weights are loaded for: copy of the language model's first layers, or random"),
    ]


@dataclass
class Order:
    """Order of compression, projection and pre-fusion (REFERENCE section 2)."""

    compress_before_projection: Annotated[
        bool, _doc("true: the compressor reads the vision tower's features (release); false: projected patches (paper)")
    ]
    fuse_compressed_tokens: Annotated[
        bool, _doc("true: compressed tokens pass through pre-fusion (release); false: they do not (paper)")
    ]


@dataclass
class Hub:
    """Pretrained parts of a model: Hub ids or folders."""

    vision_tower: Annotated[Name, _doc("Hub id or folder of the vision tower")]
    language_model: Annotated[Name, _doc("Hub id or folder of the language model")]


@dataclass
class Model:
    """Shapes of the model's parts, and where their weights and the tokenizer are."""

    vision_config: Annotated[dict[str, Any], _doc("config of the vision tower, as transformers has it")]
    text_config: Annotated[dict[str, Any], _doc("config of the language model, as transformers has it")]
    vision_feature_layer: Annotated[
        int, _doc("index of the vision tower's hidden states that are read; -2 is the last but one")
    ]
    image_processor: Annotated[dict[str, Any], _doc("settings of the image processor")]
    hub: Annotated[Hub | None, _doc("Hub ids of the pretrained parts")]
    tokenizer: Annotated[Name, _doc("folder or Hub id of the tokenizer")]
    weights: Annotated[Weights, _doc("folders whose tensors are loaded, in this order; hub; or random")]
    start: Annotated[
        Literal["uncompressed", "stage1"] | None, _doc("checkpoint of the toy world that runs start from")
    ] = None


@dataclass
class Data:
    """Which shard sets are read, and how their conversations and images become tokens and pixels."""

    folder: Annotated[Name, _doc("folder of the shard sets")]
    cache_dir: Annotated[Name | None, _doc("folder for shards from URLs; null: they are fetched at each read")]
    world_seed: Annotated[
        Count | None, _doc("seed of the toy world that is made in the folder; null: the sets are your own")
    ]
    sizes: Annotated[dict[str, Positive], _doc("number of samples of each set of the toy world")]
    splits: Annotated[
        dict[Split, Sets | None], _doc("sets of each split: one, [pooled, pooled], or {mixed: weight, mixed: weight}")
    ]
    template: Annotated[
        Template, _doc("conversation template: vicuna_v1, llama3, mistral, chatml, plain, tiny, or fields of your own")
    ]
    turns: Annotated[
        Turns, _doc("conversation: later turns see earlier ones; independent: each sees the images and itself")
    ]
    views: Annotated[
        Literal["square", "pad", "hd"],
        _doc("square: the middle of an image; pad: a square around it; hd: that in quarters and whole"),
    ]
    max_frames: Annotated[Positive | None, _doc("largest number of frames of a video; null: all")]
    shuffle_frames: Annotated[Flag, _doc("frames of a video in random order, as a control")]
    batch_size: Annotated[Positive, _doc("samples of a batch, per device")]
    eval_batch_size: Annotated[Positive, _doc("samples of a batch in evaluation")]
    num_workers: Annotated[Count, _doc("processes that make batches, per device; 0: the run itself")]
    max_length: Annotated[
        Annotated[int, Field(ge=2, strict=True)], _doc("tokens of a sample; longer ones are shortened")
    ]
    max_bad_fraction: Annotated[Share, _doc("share of unusable samples above which a run stops")]
    features: Annotated[
        Features, _doc("vision features instead of pixels: true computes them once; or a folder that has them")
    ]
    kinds: Annotated[list[str], _doc("kinds of questions that are reported")]


@dataclass
class Lora:
    """Low-rank adapters (PEFT's LoraConfig)."""

    rank: Annotated[Positive, _doc("rank of the adapters")]
    alpha: Annotated[Positive, _doc("scale of the adapters, over the rank")]
    dropout: Annotated[Annotated[float, Field(ge=0, lt=1)], _doc("dropout before the adapters")]
    dora: Annotated[Flag, _doc("DoRA instead of LoRA")]


@dataclass
class Finetune:
    """Which weights of the language model and of pre-fusion train, and how the frozen ones are stored."""

    language_model: Annotated[Literal["full", "lora", "frozen"], _doc("how the language model trains")]
    prefusion: Annotated[Literal["full", "lora"], _doc("how pre-fusion trains")]
    quantize: Annotated[Literal["nf4"] | None, _doc("4-bit storage of the frozen language model")]
    lora: Annotated[Lora | None, _doc("adapters, for lora")]


@dataclass
class Hardware:
    """GPU that a run is planned for."""

    memory_gib: Annotated[
        Annotated[float, Field(gt=0, allow_inf_nan=False)] | None,
        _doc("memory of one card, GiB; null: of the card that is here"),
    ]
    torch_build: Annotated[Literal["cpu", "cu126", "cu130"] | None, _doc("torch's build that can drive the card")]


@dataclass
class MemoryOptions:
    """Options that save memory in training."""

    activation_checkpointing: Annotated[
        Flag, _doc("recompute activations of decoder and pre-fusion layers in the backward pass")
    ]
    optimizer: Annotated[
        Literal["adamw", "adamw_8bit", "paged_adamw_8bit"], _doc("AdamW, or with its state in 8 bits (bitsandbytes)")
    ]
    loss_chunk: Annotated[Positive | None, _doc("tokens whose logits are computed at once; null: all")]
    frozen_dtype: Annotated[Literal["float16", "bfloat16"] | None, _doc("type of the frozen weights; null: float32")]
    vision_batch: Annotated[Positive | None, _doc("views that the vision tower encodes at once; null: all")]
    offload_vision: Annotated[Flag, _doc("keep the frozen vision tower in host memory")]


@dataclass
class Trainer:
    """Length, precision, devices and intervals of a training run. Steps are optimizer steps."""

    max_steps: Annotated[Positive, _doc("optimizer steps of the run")]
    accumulate_grad_batches: Annotated[Positive, _doc("batches of a step on each device")]
    gradient_clip_val: Annotated[
        Annotated[float, Field(gt=0)] | None, _doc("largest norm of the gradients; null: no clipping")
    ]
    precision: Annotated[Precision, _doc("Lightning's precision of training")]
    accelerator: Annotated[Literal["auto", "cpu", "gpu", "cuda", "mps"], _doc("kind of device")]
    strategy: Annotated[
        Literal["auto", "fsdp"], _doc("fsdp: parameters, gradients and optimizer state are sharded over the devices")
    ]
    devices: Annotated[Positive, _doc("processes of a machine that train together, one per device")]
    num_nodes: Annotated[Positive, _doc("machines; more than one by torchrun")]
    rank_timeout: Annotated[Positive, _doc("seconds that a rank waits for the others before the run ends")]
    val_every: Annotated[Positive | None, _doc("steps between validations; null: a third of max_steps")]
    checkpoint_every: Annotated[Positive, _doc("steps between checkpoints")]
    threads: Annotated[Positive, _doc("CPU threads of a process")]


@dataclass
class Tracking:
    """Reporting to MLflow."""

    enabled: Annotated[bool, _doc("whether the run is reported to MLflow")]
    uri: Annotated[Name | None, _doc("MLflow's address; null: MLFLOW_TRACKING_URI, else a file in mlruns/")]
    experiment: Annotated[Name, _doc("name of MLflow's experiment")]
    log_model: Annotated[Flag, _doc("store the model folder as an artifact")]
    parent_run_id: Annotated[Name | None, _doc("MLflow's id of the run that this one belongs to")]


@dataclass
class World:
    """Training of the toy world's pretrained parts."""

    out: Annotated[Name, _doc("folder of the three checkpoints")]
    stages: Annotated[Annotated[list[Literal[0, 1, 2]], Field(min_length=1)], _doc("stages that are trained")]
    vision_scenes: Annotated[Positive, _doc("scenes of stage 0")]
    vision_boards: Annotated[Positive, _doc("boards of stage 0")]
    vision_val_scenes: Annotated[Positive, _doc("scenes that stage 0 is validated on")]
    vision_batch_size: Annotated[Positive, _doc("images of a batch of stage 0")]


TYPES: dict[str, Any] = {
    "seed": Annotated[int, Field(ge=0, le=2**32 - 1, strict=True), _doc("seed of weights, data order and dropout")],
    "experiment_name": Annotated[Name, _doc("name of the run's folder in runs/")],
    "run_dir": Annotated[Name, _doc("folder of the run")],
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
