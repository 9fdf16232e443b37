"""The config as frozen types: every key with its type, limits and one line of documentation.

`Config.read` makes one from a resolved mapping and needs no torch, so a mistake is reported at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails, PydanticCustomError

from llava_mini import settings
from llava_mini.config.rules import (
    COMBINATION,
    check_batches,
    check_finetune,
    check_fsdp,
    check_length,
    check_model,
    check_precision,
    check_splits,
)
from llava_mini.errors import UserError
from llava_mini.limits import Count, Flag, Name, Positive, Share, Weight
from llava_mini.units import MOST_GIB

_STRICT = ConfigDict(extra="forbid")


def _only(allowed: str) -> WrapValidator:
    """Return a validator that reports one message for a value of several possible types, not one message per type."""

    def validate(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError as error:
            raise PydanticCustomError("allowed", "allowed are {allowed}", {"allowed": allowed}) from error

    return WrapValidator(validate)


def _different(stages: Any) -> Any:
    """Refuse a list of stages with one twice, or with true and false, which Python takes for 1 and 0."""
    if isinstance(stages, list) and any(isinstance(each, bool) or stages.count(each) > 1 for each in stages):
        raise PydanticCustomError("allowed", "allowed are 0, 1 and 2, each once")
    return stages


def _doc(text: str) -> Any:
    """Return what a key is for, one line of `--help` and of the reference."""
    return Field(description=text)


Turns = Literal["conversation", "independent"]
Split = Literal["train", "val", "test"]
# One shard set, several that are pooled into one, or several that are mixed by weight.
Sets = Annotated[
    Name | Annotated[list[Name], Field(min_length=1)] | Annotated[dict[Name, Weight], Field(min_length=1)],
    _only("a set, [set, ...] and {set: weight above 0, ...}"),
]
Template = Annotated[Name | dict[str, str | bool], _only("the name of a template and {field: text, ...}")]
# Folders whose tensors are loaded in this order (all other weights stay random), or those of the parts that
# model.vision_tower and model.language_model name.
Weights = Annotated[Literal["random", "parts"] | list[Name], _only("random, parts and [folder, ...]")]
Features = Annotated[Flag | Name, _only("true, false and a folder")]
Stages = Annotated[list[Literal[0, 1, 2]], Field(min_length=1), BeforeValidator(_different)]
Rgb = Annotated[
    list[Annotated[int, Field(ge=0, le=255, strict=True)]],
    Field(min_length=3, max_length=3),
    _only("[red, green, blue], each from 0 to 255"),
]
Precision = Literal["32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true"]


@dataclass(frozen=True)
class Component:
    """A class that an option of a group names, and the arguments for it: `{_target_: ..., C: 1}` in YAML.

    Attributes:
        target: Full name of the class.
        arguments: Keyword arguments of the class that the config gives; its signature checks them.
    """

    target: str
    arguments: dict[str, Any]

    def get(self, name: str, default: Any = None) -> Any:
        """Return an argument, or `default` if the config does not give it."""
        return self.arguments.get(name, default)

    def spec(self) -> dict[str, Any]:
        """Return the mapping with `_target_` that YAML and a model's config contain."""
        return {"_target_": self.target, **self.arguments}

    @classmethod
    def read(cls, value: Any) -> Any:
        """Return the component that a mapping with `_target_` describes; any other value is left to be refused."""
        if not isinstance(value, Mapping):
            return value
        if not isinstance(value.get("_target_"), str):
            raise PydanticCustomError("target", "needed is _target_, the name of a class")
        return cls(value["_target_"], {name: each for name, each in value.items() if name != "_target_"})


ComponentSpec = Annotated[Component, BeforeValidator(Component.read)]


@dataclass(frozen=True, config=_STRICT)
class Fusion:
    """Number of pre-fusion layers (N_fusion) and their initialization."""

    num_layers: Annotated[Count, _doc("N_fusion, number of pre-fusion layers; 0 for none")]
    init: Annotated[
        Literal["identity", "copy", "random"],
        _doc(
            "start of layers that no weights are loaded for: identity (they return their input), copy of the language "
            "model's first layers, or random"
        ),
    ]


@dataclass(frozen=True, config=_STRICT)
class Order:
    """Order of compression, projection and pre-fusion (REFERENCE section 2)."""

    compress_before_projection: Annotated[
        Flag, _doc("true: the compressor reads the vision tower's features (release); false: projected patches (paper)")
    ]
    fuse_compressed_tokens: Annotated[
        Flag, _doc("true: compressed tokens pass through pre-fusion (release); false: they do not (paper)")
    ]


@dataclass(frozen=True)
class Parts:
    """Pretrained parts that a model is made of: Hub ids or folders."""

    vision_tower: str
    language_model: str


@dataclass(frozen=True, config=_STRICT)
class Model:
    """Shapes of the model's parts, and where their weights and the tokenizer are."""

    vision_tower: Annotated[Name | None, _doc("Hub id or folder of the pretrained vision tower")]
    language_model: Annotated[Name | None, _doc("Hub id or folder of the pretrained language model")]
    vision_config: Annotated[
        dict[str, Any], _doc("config of the vision tower, as transformers has it; {}: that of model.vision_tower")
    ]
    text_config: Annotated[
        dict[str, Any], _doc("config of the language model, as transformers has it; {}: that of model.language_model")
    ]
    vision_feature_layer: Annotated[
        int, _doc("index of the vision tower's hidden states that are read; -2 is the last but one")
    ]
    image_processor: Annotated[dict[str, Any], _doc("settings of the image processor")]
    tokenizer: Annotated[Name, _doc("folder or Hub id of the tokenizer")]
    template: Annotated[Template, _doc("conversation template that the language model was trained with")]
    weights: Annotated[
        Weights,
        _doc(
            "folders whose tensors are loaded, in this order; parts: those of vision_tower and language_model; random"
        ),
    ]
    start: Annotated[
        Literal["uncompressed", "stage1"] | None, _doc("checkpoint of the toy world that runs start from")
    ] = None

    @property
    def parts(self) -> Parts | None:
        """Pretrained parts that the weights come from; None if they come from folders or are random."""
        if self.weights != "parts" or self.vision_tower is None or self.language_model is None:
            return None
        return Parts(self.vision_tower, self.language_model)

    @property
    def folders(self) -> list[Path]:
        """Folders whose tensors are loaded, in this order."""
        return [Path(folder) for folder in self.weights] if isinstance(self.weights, list) else []

    @model_validator(mode="after")
    def _check_together(self) -> Model:
        check_model(self)
        return self


@dataclass(frozen=True, config=_STRICT)
class Data:
    """Which shard sets are read, and how their conversations and images become tokens and pixels."""

    folder: Annotated[Name, _doc("folder of the shard sets")]
    cache_dir: Annotated[Name | None, _doc("folder for shards from URLs; null: they are fetched at each read")]
    world_seed: Annotated[
        Count | None, _doc("seed of the toy world that is made in the folder; null: the sets are your own")
    ]
    sizes: Annotated[dict[str, Positive], _doc("number of samples of each set of the toy world")]
    train: Annotated[
        Sets | None, _doc("shard sets of training: one, [pooled, pooled], or {mixed: weight, mixed: weight}")
    ]
    val: Annotated[Sets | None, _doc("shard sets of validation: one, or [pooled, pooled]")]
    test: Annotated[Sets | None, _doc("shard sets of the test, which is read once, at the end; null: none")]
    template: Annotated[
        Template,
        _doc(
            "conversation template: vicuna_v1, llama3, mistral, chatml, plain, tiny; tokenizer: that of its chat "
            "template; or fields of your own"
        ),
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
    # Later than the first runs: their files have none of them.
    worker_transport: Annotated[
        Literal["shared_memory", "pipe"],
        _doc("how workers pass batches: shared_memory, or pipe, slower, where /dev/shm is small"),
    ] = "shared_memory"
    background: Annotated[Rgb, _doc("color behind transparent parts of images and videos, [red, green, blue]")] = field(
        default_factory=lambda: [255, 255, 255]
    )

    @property
    def splits(self) -> dict[Split, str | list[str] | dict[str, float] | None]:
        """Shard sets of each split."""
        return {"train": self.train, "val": self.val, "test": self.test}

    @model_validator(mode="after")
    def _check_together(self) -> Data:
        check_splits(self)
        return self


@dataclass(frozen=True, config=_STRICT)
class Lora(settings.Lora):
    """Low-rank adapters (PEFT's LoraConfig)."""

    rank: Annotated[Positive, _doc("rank of the adapters")]
    alpha: Annotated[Positive, _doc("scale of the adapters, over the rank")]
    dropout: Annotated[Annotated[float, Field(ge=0, lt=1)], _doc("dropout before the adapters")]
    dora: Annotated[Flag, _doc("DoRA instead of LoRA")]


@dataclass(frozen=True, config=_STRICT)
class Finetune(settings.Finetune):
    """Which weights of the language model and of pre-fusion train, and how the frozen ones are stored."""

    language_model: Annotated[Literal["full", "lora", "frozen"], _doc("how the language model trains")]
    prefusion: Annotated[Literal["full", "lora"], _doc("how pre-fusion trains")]
    quantize: Annotated[Literal["nf4"] | None, _doc("4-bit storage of the frozen language model")]
    lora: Annotated[Lora | None, _doc("adapters, for lora")]

    @model_validator(mode="after")
    def _check_together(self) -> Finetune:
        check_finetune(self)
        return self


@dataclass(frozen=True, config=_STRICT)
class Hardware:
    """GPU that a run is planned for."""

    memory_gib: Annotated[
        Annotated[float, Field(gt=0, le=MOST_GIB, allow_inf_nan=False)] | None,
        _doc("memory of one card, GiB; null: of the card that is here"),
    ]


@dataclass(frozen=True, config=_STRICT)
class MemoryOptions:
    """Options that save memory in training."""

    fit: Annotated[Flag, _doc("turn on what a step needs to fit the card, and take a smaller batch if it must")]
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
    must_fit: Annotated[Flag, _doc("refuse a run on CPUs whose plan exceeds the memory that is free")] = True


@dataclass(frozen=True, config=_STRICT)
class Trainer:
    """Length, precision, devices and intervals of a training run. Steps are optimizer steps."""

    max_steps: Annotated[Positive | None, _doc("optimizer steps of the run; null: as many as trainer.epochs takes")]
    epochs: Annotated[
        Annotated[float, Field(gt=0, allow_inf_nan=False)] | None,
        _doc("passes over the training samples, if max_steps is null"),
    ]
    global_batch: Annotated[
        Positive | None,
        _doc("samples of a step on all devices; null: data.batch_size x devices x num_nodes x accumulate_grad_batches"),
    ]
    accumulate_grad_batches: Annotated[
        Positive | None, _doc("batches of a step on each device; null: as many as global_batch takes, or 1")
    ]
    gradient_clip_val: Annotated[
        Annotated[float, Field(gt=0, allow_inf_nan=False)] | None,
        _doc("largest norm of the gradients; null: no clipping"),
    ]
    precision: Annotated[Precision, _doc("Lightning's precision of training")]
    accelerator: Annotated[Literal["auto", "cpu", "gpu", "cuda", "mps"], _doc("kind of device")]
    strategy: Annotated[
        Literal["auto", "fsdp"], _doc("fsdp: parameters, gradients and optimizer state are sharded over the devices")
    ]
    devices: Annotated[Positive, _doc("processes of a machine that train together, one per device")]
    num_nodes: Annotated[Positive, _doc("machines; more than one by torchrun")]
    rank_timeout: Annotated[Positive, _doc("seconds that a rank waits for the others before the run ends")]
    val_every: Annotated[Positive | None, _doc("steps between validations; null: a third of the run's")]
    checkpoint_every: Annotated[Positive, _doc("steps between checkpoints")]
    threads: Annotated[Positive, _doc("CPU threads of a process")]

    @property
    def steps(self) -> int:
        """Optimizer steps of a run whose length is known: `assembly.with_steps` counts those of `epochs`."""
        assert self.max_steps is not None
        return self.max_steps


@dataclass(frozen=True, config=_STRICT)
class Tracking:
    """Reporting to the service that the group `tracker` names."""

    enabled: Annotated[Flag, _doc("whether the run is reported to the tracker")]
    uri: Annotated[
        Name | None,
        _doc("the tracker's address; null: MLFLOW_TRACKING_URI, else a file in mlruns/ (TensorBoard: tensorboard/)"),
    ]
    experiment: Annotated[Name, _doc("name of the experiment in the tracker")]
    log_model: Annotated[Flag, _doc("store the model folder as an artifact of MLflow")]
    parent_run_id: Annotated[Name | None, _doc("the tracker's id of the run that this one belongs to")]


@dataclass(frozen=True, config=_STRICT)
class World:
    """Training of the toy world's pretrained parts."""

    out: Annotated[Name, _doc("folder of the three checkpoints")]
    stages: Annotated[Stages, _doc("stages that are trained")]
    vision_scenes: Annotated[Positive, _doc("scenes of stage 0")]
    vision_boards: Annotated[Positive, _doc("boards of stage 0")]
    vision_val_scenes: Annotated[Positive, _doc("scenes that stage 0 is validated on")]
    vision_batch_size: Annotated[Positive, _doc("images of a batch of stage 0")]


@dataclass(frozen=True, config=_STRICT)
class Config:
    """The resolved config of a run. A part of the program receives the section that it reads.

    Attributes:
        choices: Chosen option of every group.
        inputs: Hashes of the files that a run starts from, so that a changed file with equal values is another run.
    """

    choices: dict[str, str]
    seed: Annotated[int, Field(ge=0, le=2**32 - 1, strict=True), _doc("seed of weights, data order and dropout")]
    run_name: Annotated[Name, _doc("name of the run's folder in runs/")]
    run_dir: Annotated[Name, _doc("folder of the run")]
    model: Model
    compressor: ComponentSpec
    fusion: Fusion
    order: Order
    data: Data
    stage: ComponentSpec
    finetune: Finetune
    hardware: Hardware
    memory: MemoryOptions
    trainer: Trainer
    tracking: Tracking
    launcher: ComponentSpec
    tracker: ComponentSpec
    world: World
    inputs: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_together(self) -> Config:
        check_precision(self.memory, self.trainer)
        check_length(self.trainer)
        check_batches(self.data, self.trainer)
        if self.trainer.strategy == "fsdp":
            check_fsdp(self.trainer, self.memory, self.finetune)
        return self

    @property
    def accumulate(self) -> int:
        """Batches of an optimizer step on each device."""
        trainer = self.trainer
        if trainer.global_batch is None:
            return trainer.accumulate_grad_batches or 1
        return trainer.global_batch // (self.data.batch_size * trainer.devices * trainer.num_nodes)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Config:
        """Return the config that a resolved mapping describes.

        Raises:
            UserError: a value is not allowed, or values cannot be combined; it names the key, the value and what is
                allowed.
        """
        try:
            return TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            raise first_error(error) from error

    def changed(self, values: Mapping[str, Mapping[str, Any]]) -> Config:
        """Return the config with other values of sections, by section and key.

        Raises:
            UserError: a value is not allowed, or values cannot be combined.
        """
        sections: dict[str, Any] = {}
        for name, own in values.items():
            try:
                sections[name] = replace(getattr(self, name), **own)
            except ValidationError as error:
                raise first_error(error, name) from error
        try:
            return replace(self, **sections)
        except ValidationError as error:
            raise first_error(error) from error

    def to_dict(self) -> dict[str, Any]:
        """Return the config as nested mappings, as YAML contains it; `read` makes the same config of them."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}


def _plain(value: Any) -> Any:
    if isinstance(value, Component):
        return _plain(value.spec())
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def first_error(error: ValidationError, key: str = "") -> UserError:
    """Return the first error of pydantic as one line with the full key.

    Args:
        error: Error of a validation.
        key: Key of the value that was validated.
    """
    first: ErrorDetails = error.errors()[0]
    message = f"{first['msg'][0].lower()}{first['msg'][1:]}"
    if first["type"] == COMBINATION:
        return UserError(first["msg"], **first.get("ctx", {}).get("fields", {}))
    # pydantic adds the names of its own branches and functions to the path
    parts = (part for part in first["loc"] if isinstance(part, str) and not part.startswith("function"))
    path = ".".join([*([key] if key else []), *parts])
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return UserError(f"unknown key {path}", key=path, value=first["input"])
    if first["type"] == "bool_type":
        message = "allowed are true and false"
    if first["type"] in ("missing", "missing_argument"):
        return UserError(f"missing key {path}", key=path)
    return UserError(f"{path}={first['input']!r}: {message}", key=path, value=first["input"], allowed=message)
