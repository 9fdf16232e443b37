"""The only module that turns a config into objects: tokenizer, model, data, stage, trainer.

What only neighbours know (widths, numbers of tokens and patches) is passed on here, so no config repeats it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPImageProcessorPil, PreTrainedTokenizerBase

from llava_mini.config import check_spec, instantiate
from llava_mini.data.datamodule import VLMDataModule
from llava_mini.data.feature_store import FEATURES_VERSION, FeatureRecipe, FeatureStore
from llava_mini.data.labels import ConversationTokenizer
from llava_mini.data.shards import ShardSet
from llava_mini.data.templates import ConversationTemplate
from llava_mini.data.toyworld.make import make_world
from llava_mini.errors import UserError
from llava_mini.models import LlavaMiniConfig, LlavaMiniForConditionalGeneration, LlavaMiniProcessor
from llava_mini.models.compressors import build_compressor
from llava_mini.models.vision_tower import HD_VIEWS, SINGLE_VIEW
from llava_mini.stages.base import VLMStage
from llava_mini.stages.callbacks import Clock, History, Progress
from llava_mini.stages.checkpointing import AtomicCheckpointIO
from llava_mini.views import ImageTransform

log = logging.getLogger("llava_mini")

Config = dict[str, Any]


def seed_run(config: Config) -> None:
    """Seed all generators and set the threads of this process."""
    seed_everything(config["seed"], verbose=False)
    torch.set_num_threads(config["trainer"]["threads"])


def build_tokenizer(config: Config) -> PreTrainedTokenizerBase:
    """The model's tokenizer.

    Raises:
        UserError: when its folder holds none.
    """
    place = config["model"]["tokenizer"]
    if not (Path(place) / "tokenizer_config.json").is_file():
        raise UserError(f"model.tokenizer={place}: no tokenizer_config.json there; name a tokenizer's folder")
    return AutoTokenizer.from_pretrained(place)


def build_model(config: Config, tokenizer: PreTrainedTokenizerBase) -> LlavaMiniForConditionalGeneration:
    """The model with its weights loaded and pre-fusion initialised.

    Raises:
        UserError: for weights that are missing or do not fit, or an impossible fusion.
    """
    spec, fusion = config["model"], config["fusion"]
    text_config = {
        **spec["text_config"],
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    try:
        model = LlavaMiniForConditionalGeneration(
            LlavaMiniConfig(
                vision_config=spec["vision_config"],
                text_config=text_config,
                image_token_id=tokenizer.convert_tokens_to_ids(image_token(config)),
                vision_feature_layer=spec["vision_feature_layer"],
                compressor=config["compressor"],
                num_fusion_layers=fusion["num_layers"],
                **config["order"],
            )
        )
    except UserError:
        raise
    except (StrictDataclassError, ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as error:
        # whatever transformers or torch raise for shapes that cannot be built
        raise UserError(f"model: this shape cannot be built: {type(error).__name__}: {error}") from error
    for folder in spec["weights"]:
        load_weights(model, Path(folder))
    if fusion["init"] == "copy" and fusion["num_layers"]:
        model.prefusion.copy_from(model.language_model)
    return model


def check_model(config: Config) -> None:
    """Find the mistakes in a config that need no weights and no data, before anything is made for it.

    Raises:
        UserError: for an impossible stage, compressor or fusion.
    """
    check_spec(config["stage"], "stage", {"model", "kinds", "report_dir"})
    spec, fusion = config["model"], config["fusion"]
    before = config["order"]["compress_before_projection"]
    build_compressor(config["compressor"], spec["vision_config" if before else "text_config"]["hidden_size"])
    layers = spec["text_config"]["num_hidden_layers"]
    if fusion["init"] == "copy" and fusion["num_layers"] > layers:
        raise UserError(
            f"fusion.num_layers={fusion['num_layers']}: init 'copy' allows at most the language model's {layers} layers"
        )


def load_weights(model: LlavaMiniForConditionalGeneration, folder: Path) -> None:
    """Load the parts of a model that `folder`/model.safetensors holds.

    Raises:
        UserError: for a missing or unreadable file, or a tensor that the model does not have or has in another shape.
    """
    path = folder / "model.safetensors"
    try:
        tensors = load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"model.weights: {path} is missing; `make world` makes the tiny world's") from error
    except SafetensorError as error:
        raise UserError(f"model.weights: {path} is no safetensors file ({error})") from error
    own = model.state_dict()
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            has = f"shape {list(own[name].shape)}" if name in own else "no such tensor"
            raise UserError(f"{path}: {name} has shape {list(tensor.shape)}, the model has {has}")
    _check_hash(path)
    model.load_state_dict(tensors, strict=False)
    log.info("%s: weights of %s", path, ", ".join(sorted({name.split(".")[0] for name in tensors})))


def _check_hash(path: Path) -> None:
    """Compare weights with the hash in the recipe beside them, where there is one."""
    recipe = path.with_name("recipe.json")
    if recipe.is_file():
        expected = json.loads(recipe.read_text())["sha256"]
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != expected:
            raise UserError(f"{path}: sha256 is {found[:12]}, {recipe.name} says {expected[:12]}; restore it")


def image_token(config: Config) -> str:
    """The placeholder in the tokenizer's vocabulary."""
    return str(config["data"]["template"].get("image_token", "<image>"))


def build_processor(
    config: Config, model: LlavaMiniForConditionalGeneration, tokenizer: PreTrainedTokenizerBase
) -> LlavaMiniProcessor:
    """The processor that fits the model."""
    return LlavaMiniProcessor(
        CLIPImageProcessorPil(**config["model"]["image_processor"]),
        tokenizer,
        num_image_tokens=model.tokens_per_frame(SINGLE_VIEW),
        num_hd_image_tokens=model.tokens_per_frame(HD_VIEWS),
        high_resolution=config["data"]["high_resolution"],
        image_token=image_token(config),
    )


def prepare_data(config: Config) -> None:
    """Make the toy world's sets that this config reads and that are not there yet; one's own data are left alone."""
    data = config["data"]
    if data["world_seed"] is None:
        return
    sizes = {name: data["sizes"][name] for name in _splits(config).values()}
    make_world(data["folder"], seed=data["world_seed"], sizes=sizes)


def _splits(config: Config) -> dict[str, str]:
    """Names of the shard sets by split, of the splits that there are."""
    return {split: name for split, name in config["data"]["splits"].items() if name is not None}


def build_datamodule(
    config: Config, model: LlavaMiniForConditionalGeneration, processor: LlavaMiniProcessor
) -> VLMDataModule:
    """Training, validation and test data; with cached features when the config asks for them."""
    data, trainer = config["data"], config["trainer"]
    prepare_data(config)
    shards = {split: ShardSet(Path(data["folder"]) / name) for split, name in _splits(config).items()}
    tokenize = ConversationTokenizer(
        processor.tokenizer,
        instantiate({"_target_": _path(ConversationTemplate), **data["template"]}, "data.template"),
        turns=data["turns"],
        num_image_tokens=processor.tokens_of(HD_VIEWS if data["high_resolution"] else SINGLE_VIEW),
        max_length=data["max_length"],
    )
    transform = ImageTransform(processor.image_processor, hd=data["high_resolution"])
    stores = _feature_stores(config, model, shards, transform) if data["cache_features"] else None
    return VLMDataModule(
        shards=shards,
        tokenize=tokenize,
        transform=transform,
        features=stores,
        batch_size=data["batch_size"],
        eval_batch_size=data["eval_batch_size"],
        num_batches=trainer["max_steps"] * trainer["accumulate_grad_batches"],
        seed=config["seed"],
        num_workers=data["num_workers"],
    )


def build_stage(config: Config, model: LlavaMiniForConditionalGeneration) -> VLMStage:
    """The LightningModule of the stage."""
    stage: VLMStage = instantiate(
        config["stage"], "stage", model=model, kinds=config["data"]["kinds"], report_dir=config["run_dir"]
    )
    return stage


def build_trainer(config: Config, clock: Clock, loggers: list[Logger]) -> Trainer:
    """Lightning's Trainer for one run: one pass over the planned stream, checkpoints in `run_dir`/checkpoints."""
    spec, run_dir = config["trainer"], Path(config["run_dir"])
    callbacks: list[Callback] = [
        clock,
        History(run_dir / "history.jsonl"),
        Progress(),
        ModelCheckpoint(
            dirpath=run_dir / "checkpoints",
            filename="best",
            monitor="val/accuracy",
            mode="max",
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        ),
        ModelCheckpoint(
            dirpath=run_dir / "checkpoints",
            filename="last",
            every_n_train_steps=spec["checkpoint_every"],
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        ),
    ]
    return make_trainer(
        config,
        callbacks=callbacks,
        logger=loggers or False,
        plugins=[AtomicCheckpointIO()],
        default_root_dir=run_dir,
        log_every_n_steps=10,
        val_check_interval=min(spec["val_every"], spec["max_steps"]) * spec["accumulate_grad_batches"],
    )


def make_trainer(config: Config, **options: Any) -> Trainer:
    """Lightning's Trainer with what every training here has in common.

    Args:
        config: Whose `trainer` is read.
        **options: What this training has of its own.
    """
    # Lightning sets its loggers to INFO when it is imported; what it says there is of no use to a user of this program.
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")  # frozen parts, on purpose
    warnings.filterwarnings("ignore", message="`training_step` returned `None`")  # a batch without a usable sample
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # a run that continues
    spec = config["trainer"]
    on_gpu = spec["accelerator"] not in ("cpu", "mps") and torch.cuda.is_available()
    if spec["accelerator"] in ("gpu", "cuda") and not on_gpu:
        raise UserError(f"trainer.accelerator={spec['accelerator']}: torch finds no GPU here; allowed are auto, cpu")
    return Trainer(
        max_steps=spec["max_steps"],
        max_epochs=1,
        accumulate_grad_batches=spec["accumulate_grad_batches"],
        gradient_clip_val=spec["gradient_clip_val"],
        precision=spec["precision"],
        accelerator=spec["accelerator"],
        devices=spec["devices"],
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=sys.stderr.isatty(),
        use_distributed_sampler=False,
        deterministic="warn" if on_gpu else True,  # CUDA has no deterministic form of some backward passes (pooling)
        **options,
    )


def _feature_stores(
    config: Config,
    model: LlavaMiniForConditionalGeneration,
    shards: dict[str, ShardSet],
    transform: ImageTransform,
) -> dict[str, FeatureStore]:
    """Features of every split, computed by the first run that needs them; kept beside the data."""
    views = HD_VIEWS if config["data"]["high_resolution"] else SINGLE_VIEW
    tower = tower_fingerprint(config, model)
    recipe = FeatureRecipe(
        tower=tower, shape=(views, model.side**2, model.config.vision_config.hidden_size), dtype="float32"
    )
    model.vision_tower.eval()
    root = Path(config["data"]["folder"]) / "features"
    return {
        split: FeatureStore.build(root / recipe.fingerprint(each)[:16], each, model.encode, recipe, transform)
        for split, each in shards.items()
    }


def tower_fingerprint(config: Config, model: LlavaMiniForConditionalGeneration) -> str:
    """Hash of all that makes features: the vision tower and its weights, the layer that is read, how pixels are made.

    Weights alone do not say it: another activation or number of heads has the same tensors.
    """
    # these tell who wrote the config and in what type; the types of the weights are counted below
    unrelated = {"transformers_version", "_name_or_path", "architectures", "dtype"}
    shape = {key: value for key, value in model.config.vision_config.to_dict().items() if key not in unrelated}
    facts = {
        "version": FEATURES_VERSION,
        "vision_config": shape,
        "layer": model.config.vision_feature_layer,
        "image_processor": config["model"]["image_processor"],
        "high_resolution": config["data"]["high_resolution"],
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(model.vision_tower.state_dict().items()):
        digest.update(f"{name} {tensor.dtype}".encode())
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
