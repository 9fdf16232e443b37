"""LLaVA's own checkpoints: config and names of transformers (1.5, 1.6) and of the original release, mapped to ours.

A model of ours starts from their vision tower, projector and language model. They have no compressor and no pre-fusion.
What 1.6 adds to 1.5 (a tensor between rows of high-resolution patches) has no counterpart here and is left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from llava_mini.errors import UserError, refused
from llava_mini.models.interop.checkpoint import Layout
from llava_mini.views import ViewMode

_OLD = Layout(  # names that transformers writes
    (
        ("language_model.", "language_model."),
        ("multi_modal_projector.", "projector."),
        ("vision_tower.vision_model.", "vision_tower."),
        ("vision_tower.", "vision_tower."),
    )
)
_NEW = Layout(  # names in transformers' current models
    (
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.multi_modal_projector.", "projector."),
        ("model.vision_tower.vision_model.", "vision_tower."),
        ("model.vision_tower.", "vision_tower."),
    )
)
_ORIGINAL = Layout(
    (
        ("model.vision_tower.vision_tower.vision_model.", "vision_tower."),
        ("model.mm_projector.0.", "projector.linear_1."),
        ("model.mm_projector.2.", "projector.linear_2."),
        ("model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    )
)
_FAMILIES = {"llava": "llama", "llava_llama": "llama", "llava_mistral": "mistral", "llava_qwen": "qwen2"}
_NOT_TEXT = ("mm_", "tune_mm", "freeze_mm", "use_mm", "unfreeze_mm", "image_")
_VISION_TOWERS = ("clip_vision_model", "siglip_vision_model")
LEFT_OUT = "image_newline"


@dataclass(frozen=True)
class Source:
    """Properties of a LLaVA checkpoint."""

    layout: Layout  # of its tensor names
    text_config: PreTrainedConfig
    vision_config: PreTrainedConfig | None  # None where only `vision_tower` names it
    vision_tower: str | None  # Hub id or folder that the config names
    vision_feature_layer: int  # index of the hidden states that are read
    projector_hidden_act: str
    image_token_id: int | None  # of the placeholder in its vocabulary, if it has one
    views: ViewMode  # how it makes views of an image


def source_of(config: dict[str, Any], names: Iterable[str]) -> Source:
    """Find out by its config.json and the names of its tensors which of LLaVA's layouts a checkpoint has.

    Raises:
        UserError: the checkpoint has none of the layouts, or is a variant that has no counterpart here.
    """
    if config.get("model_type") in ("llava", "llava_next") and "text_config" in config:
        return _transformers_source(config, names)
    if "mm_projector_type" in config and config.get("model_type") in _FAMILIES:
        return _original_source(config)
    raise UserError(
        f"config of another architecture (model_type={config.get('model_type')!r}); allowed are transformers' llava "
        "and llava_next, and the original LLaVA-v1.5 and 1.6"
    )


def _transformers_source(config: dict[str, Any], names: Iterable[str]) -> Source:
    theirs = CONFIG_MAPPING[config["model_type"]].from_dict(config)
    _only("vision_feature_select_strategy", theirs.vision_feature_select_strategy, "default")
    _only("multimodal_projector_bias", theirs.multimodal_projector_bias, True)
    tower = theirs.vision_config.model_type
    if tower not in _VISION_TOWERS:
        allowed = ", ".join(_VISION_TOWERS)
        raise UserError(f"config of another architecture (vision_config.model_type={tower!r}); allowed are {allowed}")
    if not isinstance(theirs.vision_feature_layer, int):
        raise refused("vision_feature_layer", theirs.vision_feature_layer, "one layer is read here")
    return Source(
        layout=_NEW if any(name.startswith("model.") for name in names) else _OLD,
        text_config=theirs.text_config,
        vision_config=theirs.vision_config,
        vision_tower=None,
        vision_feature_layer=theirs.vision_feature_layer,
        projector_hidden_act=theirs.projector_hidden_act,
        image_token_id=theirs.image_token_id,
        views="square",
    )


def _original_source(config: dict[str, Any]) -> Source:
    _only("mm_projector_type", config["mm_projector_type"], "mlp2x_gelu")
    _only("mm_vision_select_feature", config.get("mm_vision_select_feature", "patch"), "patch")
    unfit = ("model_type", "architectures")
    text = {key: value for key, value in config.items() if not key.startswith(_NOT_TEXT) and key not in unfit}
    return Source(
        layout=_ORIGINAL,
        text_config=CONFIG_MAPPING[_FAMILIES[config["model_type"]]](**text),
        vision_config=None,
        vision_tower=config.get("mm_vision_tower"),
        vision_feature_layer=config.get("mm_vision_select_layer", -2),
        projector_hidden_act="gelu",
        image_token_id=None,
        views="pad" if config.get("image_aspect_ratio") in ("pad", "anyres") else "square",
    )


def _only(name: str, value: Any, allowed: Any) -> None:
    if value != allowed:
        raise refused(name, value, "LLaVA-Mini cannot take it over", only=str(allowed))
