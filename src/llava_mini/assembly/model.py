"""Build a model from a config: its shape, the weights that it starts from, and its processor.

`check_model` finds the mistakes that need neither weights nor data, so that a sweep can report them before any run.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from llava_mini.assembly.base import Base, copy_to_prefusion, frozen_dtype, is_kept_small, load_base
from llava_mini.assembly.tokenizer import build_template, image_token
from llava_mini.assembly.weights import holds, load_parts, load_tower, load_weights
from llava_mini.config import Config, check_component
from llava_mini.config.types import Model
from llava_mini.errors import UserError, named_as, refused
from llava_mini.models import LlavaMiniConfig, LlavaMiniForConditionalGeneration, LlavaMiniProcessor
from llava_mini.models.compressors import build_compressor
from llava_mini.models.configuration import PARTS, PARTS_BETWEEN
from llava_mini.models.image_processor import build_image_processor
from llava_mini.models.initialization import default_dtype, initialize
from llava_mini.models.interop.parts import check_same, language_model_folder, text_config_of, vision_config_of
from llava_mini.models.prefusion import check_copy
from llava_mini.models.vision_tower import build_vision_tower

log = logging.getLogger("llava_mini")


def build_model(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LlavaMiniForConditionalGeneration:
    """Build the model with its weights loaded and pre-fusion initialized.

    On the device "meta" it has shapes alone, and no weights are looked for. A language model that the run freezes has
    the type in which it is kept, and linear layers that will be packed into 4 bits wait in their files (`LazyLinear`)
    for `fine_tune`.

    Raises:
        UserError: weights are missing or do not fit, or the fusion is impossible.
    """
    spec, device = config.model, torch.device(device)
    if device.type == "meta":
        with device, default_dtype(dtype):
            return _shaped(config, tokenizer, from_parts=False)
    small = _with_frozen_base(config, tokenizer, device, dtype) if is_kept_small(config) else None
    if small is not None:
        return small
    parts = spec.parts
    with torch.device("meta") if parts else device, default_dtype(dtype):
        model = _shaped(config, tokenizer, from_parts=parts is not None)
    if parts:
        load_parts(model, parts, device, dtype)
    loaded = load_weights(model, spec.folders, without=("prefusion",) if _copies(config) else ())
    _start_prefusion(config, model)
    _say_new(config, model, loaded)
    return model


def _with_frozen_base(
    config: Config, tokenizer: PreTrainedTokenizerBase, device: torch.device, dtype: torch.dtype
) -> LlavaMiniForConditionalGeneration | None:
    """Build the model of a run that freezes its language model; None if the language model's weights are random."""
    spec = config.model
    parts = spec.parts
    with torch.device("meta"), default_dtype(dtype):
        model = _shaped(config, tokenizer, from_parts=parts is not None)
    if parts:
        base = Base.of([language_model_folder(parts.language_model)], prefix="")
    else:
        base = Base.of(spec.folders)
        if not base.places:
            return None
    base.check(model.language_model, str(parts.language_model if parts else spec.weights))
    if parts:
        load_tower(model, parts, device, dtype)
    else:
        with device, default_dtype(dtype):
            model.vision_tower = build_vision_tower(model.config.vision_config)
    with default_dtype(dtype):
        initialize(model, PARTS_BETWEEN, device)
    without = ("language_model", "prefusion") if _copies(config) else ("language_model",)
    loaded = load_weights(model, spec.folders, without=without)
    packed = config.finetune.quantize is not None
    load_base(model, base, device, frozen_dtype(config) or dtype, packed=packed)
    _start_prefusion(config, model, base)
    _say_new(config, model, {"language_model", *loaded})
    return model


def _copies(config: Config) -> bool:
    """Whether pre-fusion starts from the language model's first layers, as no weights contain a trained pre-fusion."""
    fusion = config.fusion
    return fusion.init != "random" and fusion.num_layers > 0 and not holds(config.model.folders, "prefusion")


def _start_prefusion(config: Config, model: LlavaMiniForConditionalGeneration, base: Base | None = None) -> None:
    """Start pre-fusion from the language model's first layers, in the model or in its files (`base`), if it copies."""
    if not _copies(config):
        return
    if base is None:
        model.prefusion.copy_from(model.language_model)
    else:
        copy_to_prefusion(model, base)
    if config.fusion.init == "identity":
        model.prefusion.become_identity()


def _say_new(config: Config, model: LlavaMiniForConditionalGeneration, loaded: set[str]) -> None:
    """Log which parts are in no folder of `model.weights`."""
    new = sorted({name.split(".")[0] for name in model.state_dict()} - loaded)
    if config.model.folders and new:
        copied = (
            f" (prefusion from the language model's first layers: fusion.init={config.fusion.init})"
            if _copies(config)
            else ""
        )
        log.info("initialized, not loaded: %s%s", ", ".join(new), copied)


def build_vision_model(config: Config, tokenizer: PreTrainedTokenizerBase) -> LlavaMiniForConditionalGeneration:
    """Build the model with its vision tower alone; the other parts have shapes but take no memory, however large.

    Raises:
        UserError: weights are missing or do not fit, or contain no vision tower.
    """
    spec = config.model
    with torch.device("meta"):
        model = _shaped(config, tokenizer, from_parts=spec.parts is not None)
    if parts := spec.parts:
        load_tower(model, parts, torch.device("cpu"), torch.float32)
        return model
    model.vision_tower = build_vision_tower(model.config.vision_config)
    if not load_weights(model, spec.folders, PARTS[1:]):
        raise refused("model.weights", spec.weights, "none of them contains a vision tower")
    return model


@named_as({"vision_feature_layer": "model.vision_feature_layer"})
def _shaped(
    config: Config, tokenizer: PreTrainedTokenizerBase, *, from_parts: bool
) -> LlavaMiniForConditionalGeneration:
    """Build the model with random weights, in the preset's shape or in that of the parts it will be made of.

    Raises:
        UserError: the shape is impossible, or a part's config differs from the preset's.
    """
    spec = config.model
    try:
        vision_config, text_config = _part_configs(spec, tokenizer, from_parts=from_parts)
        return LlavaMiniForConditionalGeneration(
            LlavaMiniConfig(
                vision_config=vision_config,
                text_config=text_config,
                image_token_id=tokenizer.convert_tokens_to_ids(image_token(config)),
                vision_feature_layer=spec.vision_feature_layer,
                compressor=config.compressor.spec(),
                num_fusion_layers=config.fusion.num_layers,
                **asdict(config.order),
            )
        )
    except UserError:
        raise
    except (StrictDataclassError, ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as error:
        # whatever transformers or torch raise for shapes that cannot be built
        why = f"model: this shape cannot be built: {type(error).__name__}: {error}"
        raise UserError(why, key="model") from error


def _part_configs(
    spec: Model, tokenizer: PreTrainedTokenizerBase, *, from_parts: bool
) -> tuple[dict[str, Any] | PreTrainedConfig, dict[str, Any] | PreTrainedConfig]:
    """Return the configs of vision tower and language model: the preset's, or the parts' own if they are read there.

    If a preset says nothing about a part, the part's own config is always used. What a preset's text config does not
    say follows from the tokenizer.

    Raises:
        UserError: a part whose config is needed cannot be found, or differs from what the preset says.
    """
    vision_config: dict[str, Any] | PreTrainedConfig = spec.vision_config
    text_config, parts = spec.text_config, spec.parts
    if parts and (from_parts or not vision_config):
        own = vision_config_of(parts.vision_tower)
        check_same(spec.vision_config, own, "vision_config", parts.vision_tower)
        vision_config = own
    if parts and (from_parts or not text_config):
        own = text_config_of(parts.language_model)
        check_same(text_config, own, "text_config", parts.language_model)
        return vision_config, own
    from_tokenizer = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return vision_config, {**from_tokenizer, **text_config}


def check_model(config: Config, *, complete: bool = True) -> None:
    """Find the mistakes in a config that need no weights and no data, before anything is made for it.

    A stage that is not `complete` need not be one that a run can train: the toy world's stage 0 needs more arguments.

    Raises:
        UserError: the stage, launcher, compressor or fusion is impossible.
    """
    given = {"model", "kinds", "report_dir", "finetune", "optimizer", "seed"}
    check_component(config.stage, "stage", given, complete=complete)
    check_component(config.launcher, "launcher", {"devices"})
    spec, fusion = config.model, config.fusion
    before = config.order.compress_before_projection
    width = (spec.vision_config if before else spec.text_config).get("hidden_size")
    if width is not None:  # otherwise the part's own config says it, which may still have to be downloaded
        build_compressor(config.compressor.spec(), width, _side(spec.vision_config))
    layers = spec.text_config.get("num_hidden_layers")
    if layers is not None and fusion.init != "random":
        check_copy(fusion.num_layers, layers)


def _side(vision_config: dict[str, Any]) -> int | None:
    """Return the number of patches along a side of a view if the preset says it, else None."""
    image, patch = vision_config.get("image_size"), vision_config.get("patch_size")
    return image // patch if isinstance(image, int) and isinstance(patch, int) and patch > 0 else None


def build_processor(
    config: Config, model: LlavaMiniForConditionalGeneration, tokenizer: PreTrainedTokenizerBase
) -> LlavaMiniProcessor:
    """Build the processor that fits the model: its vision tower's kind of images, and the template of the data.

    Raises:
        UserError: `model.image_processor` does not fit the vision tower's kind.
    """
    return LlavaMiniProcessor(
        build_image_processor(model.config.vision_config, config.model.image_processor),
        tokenizer,
        num_image_tokens=model.layout.single_view,
        num_hd_image_tokens=model.layout.hd,
        views=config.data.views,
        background=config.data.background,
        image_token=image_token(config),
        chat_template=build_template(config, tokenizer).chat_template(),
    )
