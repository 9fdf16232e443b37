"""Config to model: its shape, the weights that it starts from, its tokenizer and its processor.

`check_model` finds the mistakes that need neither weights nor data, so that a sweep can tell them before any run.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPImageProcessorPil, PreTrainedTokenizerBase

from llava_mini.config import check_spec
from llava_mini.errors import UserError
from llava_mini.models import LlavaMiniConfig, LlavaMiniForConditionalGeneration, LlavaMiniProcessor
from llava_mini.models.compressors import build_compressor
from llava_mini.models.vision_tower import HD_VIEWS, SINGLE_VIEW, build_vision_tower

log = logging.getLogger("llava_mini")

Config = dict[str, Any]


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
    model = _shaped(config, tokenizer)
    for folder in config["model"]["weights"]:
        load_weights(model, Path(folder))
    if config["fusion"]["init"] == "copy" and config["fusion"]["num_layers"]:
        model.prefusion.copy_from(model.language_model)
    return model


def build_vision_model(config: Config, tokenizer: PreTrainedTokenizerBase) -> LlavaMiniForConditionalGeneration:
    """The model with its vision tower alone; the other parts have shapes but take no memory, however large they are.

    Raises:
        UserError: for weights that are missing or do not fit, or that hold no vision tower.
    """
    with torch.device("meta"):
        model = _shaped(config, tokenizer)
    model.vision_tower = build_vision_tower(model.config.vision_config)
    found = [load_weights(model, Path(folder), part="vision_tower") for folder in config["model"]["weights"]]
    if not any(found):
        raise UserError(f"model.weights={config['model']['weights']}: none of them holds a vision tower")
    return model


def _shaped(config: Config, tokenizer: PreTrainedTokenizerBase) -> LlavaMiniForConditionalGeneration:
    """The model with random weights.

    Raises:
        UserError: for an impossible shape.
    """
    spec = config["model"]
    text_config = {
        **spec["text_config"],
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    try:
        return LlavaMiniForConditionalGeneration(
            LlavaMiniConfig(
                vision_config=spec["vision_config"],
                text_config=text_config,
                image_token_id=tokenizer.convert_tokens_to_ids(image_token(config)),
                vision_feature_layer=spec["vision_feature_layer"],
                compressor=config["compressor"],
                num_fusion_layers=config["fusion"]["num_layers"],
                **config["order"],
            )
        )
    except UserError:
        raise
    except (StrictDataclassError, ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as error:
        # whatever transformers or torch raise for shapes that cannot be built
        raise UserError(f"model: this shape cannot be built: {type(error).__name__}: {error}") from error


def check_model(config: Config) -> None:
    """Find the mistakes in a config that need no weights and no data, before anything is made for it.

    Raises:
        UserError: for an impossible stage, compressor or fusion.
    """
    check_spec(config["stage"], "stage", {"model", "kinds", "report_dir", "finetune", "optimizer", "seed"})
    spec, fusion = config["model"], config["fusion"]
    before = config["order"]["compress_before_projection"]
    build_compressor(config["compressor"], spec["vision_config" if before else "text_config"]["hidden_size"])
    layers = spec["text_config"]["num_hidden_layers"]
    if fusion["init"] == "copy" and fusion["num_layers"] > layers:
        raise UserError(
            f"fusion.num_layers={fusion['num_layers']}: init 'copy' allows at most the language model's {layers} layers"
        )


def load_weights(model: LlavaMiniForConditionalGeneration, folder: Path, part: str = "") -> bool:
    """Load the parts of a model that `folder`/model.safetensors holds, or one of them.

    Returns:
        Whether it holds any.

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
    tensors = {name: tensor for name, tensor in tensors.items() if not part or name.startswith(f"{part}.")}
    own = model.state_dict()
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            has = f"shape {list(own[name].shape)}" if name in own else "no such tensor"
            raise UserError(f"{path}: {name} has shape {list(tensor.shape)}, the model has {has}")
    _check_hash(path)
    model.load_state_dict(tensors, strict=False)
    if tensors:
        log.info("%s: weights of %s", path, ", ".join(sorted({name.split(".")[0] for name in tensors})))
    return bool(tensors)


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
    template = config["data"]["template"]
    return "<image>" if isinstance(template, str) else str(template.get("image_token", "<image>"))


def build_processor(
    config: Config, model: LlavaMiniForConditionalGeneration, tokenizer: PreTrainedTokenizerBase
) -> LlavaMiniProcessor:
    """The processor that fits the model."""
    return LlavaMiniProcessor(
        CLIPImageProcessorPil(**config["model"]["image_processor"]),
        tokenizer,
        num_image_tokens=model.tokens_per_frame(SINGLE_VIEW),
        num_hd_image_tokens=model.tokens_per_frame(HD_VIEWS),
        views=config["data"]["views"],
        image_token=image_token(config),
    )
