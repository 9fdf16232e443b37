"""Model parts from other projects: a vision tower and a language model, by Hub id or folder.

A full CLIP or SigLIP checkpoint provides its vision half. No code of a checkpoint is ever run, safetensors are
preferred, and a part that would start with missing tensors is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipVisionModel,
)

from llava_mini.errors import UserError, refused
from llava_mini.files import why_unreadable
from llava_mini.models.configuration import CLIP_VIT_L_336
from llava_mini.models.interop.checkpoint import COMPUTED, Checkpoint, Shape, check_shapes, is_finite, some
from llava_mini.models.interop.json_config import check_plain, check_sizes, config_trusted, read_config
from llava_mini.models.language_model import check_family
from llava_mini.models.vision_tower import readable

_TOWERS: dict[str, tuple[type[PreTrainedModel], bool]] = {  # by model_type: class, whether it is half of a checkpoint
    "clip": (CLIPVisionModel, True),
    "clip_vision_model": (CLIPVisionModel, False),
    "siglip": (SiglipVisionModel, True),
    "siglip_vision_model": (SiglipVisionModel, False),
}
CLIP_ID = "openai/clip-vit-large-patch14-336"
_HALF = "vision_model."  # prefix of a tower's names in a full checkpoint, and in one of old versions
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_LOAD_ERRORS = (
    OSError, ValueError, KeyError, RuntimeError, EOFError, SafetensorError, StrictDataclassError, HFValidationError,
    ArithmeticError, AttributeError, TypeError,
)  # fmt: skip


class Tower:
    """Vision tower of a checkpoint: its config, and where its weights are if the checkpoint has none.

    The checkpoint has its `own` config, or it names a tower (`named`), or the user does (`given`).

    Raises:
        UserError: only the checkpoint's config names a vision tower, and the name is not `CLIP_ID`.
    """

    def __init__(self, named: str | None, given: str | None, own: PreTrainedConfig | None = None):
        if own is not None:
            self.config = own
        elif given is not None:
            self.config = vision_config_of(given)
        elif named == CLIP_ID:
            self.config = CLIPVisionConfig(**CLIP_VIT_L_336)
        else:
            why = f"the vision tower is {named!r}: give its folder or Hub id by vision_tower"
            raise UserError(why, key="vision_tower", value=named)
        self.place = given or named or ""


def is_place(place: str) -> bool:
    """Whether `place` is an existing folder or has the form of a Hub id, owner/name."""
    return os.path.isdir(place) or _HUB_ID.fullmatch(place) is not None


def vision_config_of(place: str) -> PreTrainedConfig:
    """Return the config of the vision tower in a folder or at a Hub id.

    Raises:
        UserError: nothing is there, or it is neither CLIP nor SigLIP.
    """
    config = _read_config(place, "vision tower")
    if config.model_type not in _TOWERS:
        raise UserError(f"vision tower {place}: is of type {config.model_type!r}; allowed are {', '.join(_TOWERS)}")
    return config.vision_config if _TOWERS[config.model_type][1] else config


def text_config_of(place: str) -> PreTrainedConfig:
    """Return the config of the language model in a folder or at a Hub id.

    Raises:
        UserError: nothing is there, or its family is not Llama, Mistral or Qwen2.
    """
    config = _read_config(place, "language model")
    check_family(config)
    return config


def load_vision_tower(place: str, dtype: torch.dtype) -> PreTrainedModel:
    """Load the vision tower in a folder or at a Hub id, with its weights.

    Raises:
        UserError: where `vision_config_of` raises one, or for weights that are missing or do not fit.
    """
    config = vision_config_of(place)
    tower_class = next(kind for kind, _ in _TOWERS.values() if kind.config_class is type(config))
    is_half = _TOWERS[_read_config(place, "vision tower").model_type][1]

    def ours(name: str) -> str | None:
        return None if is_half and not name.startswith(_HALF) else name.removeprefix(_HALF)

    with config_trusted(f"vision tower {place}"), torch.device("meta"):
        shaped = tower_class(config)
    _check_stored(place, "vision tower", shaped, ours)
    return readable(_load(tower_class.from_pretrained, place, "vision tower", config, dtype))


def load_language_model(place: str, dtype: torch.dtype) -> PreTrainedModel:
    """Load the language model in a folder or at a Hub id, with its weights.

    Raises:
        UserError: where `text_config_of` raises one, or for weights that are missing or do not fit.
    """
    config = text_config_of(place)
    with config_trusted(f"language model {place}"), torch.device("meta"):
        shaped = AutoModelForCausalLM.from_config(config)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    _check_stored(place, "language model", shaped, lambda name: None if name in tied else name)
    return _load(AutoModelForCausalLM.from_pretrained, place, "language model", config, dtype)


def language_model_folder(place: str) -> Path:
    """Path of a language model's files on this machine; those of a Hub id are fetched, safetensors if there are any.

    Raises:
        UserError: where `text_config_of` raises one, or when there are no weights.
    """
    text_config_of(place)
    return _folder_of(place, "language model")


def _folder_of(place: str, part: str) -> Path:
    if Path(place).is_dir():
        return Path(place)
    try:
        for pattern in ("model*.safetensors*", "pytorch_model*.bin*"):
            folder = Path(snapshot_download(place, allow_patterns=["config.json", pattern]))
            if any(folder.glob(pattern)):
                return folder
    except _LOAD_ERRORS as error:
        raise UserError(f"{part} {place}: cannot be loaded: {_one_line(error, place)}") from error
    raise UserError(f"{part} {place}: contains no model*.safetensors and no pytorch_model*.bin")


def check_same(given: dict[str, Any], own: PreTrainedConfig, key: str, place: str) -> None:
    """Compare what a preset says about a part with the part's own config; the part defines what the preset omits.

    `key` of the config and `place` (folder or Hub id) are for the message.

    Raises:
        UserError: naming the first field that differs, with both values.
    """
    theirs = own.to_dict()
    for field, value in given.items():
        if not _equal(value, theirs.get(field)):
            raise refused(f"model.{key}.{field}", value, f"{place} has {theirs.get(field)!r}")


def _equal(one: Any, other: Any) -> bool:
    """Compare two values; a number that was stored as float32 on the way (as in GGUF) is the same number."""
    if isinstance(one, float) and isinstance(other, float):
        return bool(np.float32(one) == np.float32(other))
    return bool(one == other)


def _read_config(place: str, part: str) -> PreTrainedConfig:
    if not is_place(place):
        raise UserError(f"{part} {place}: no such folder, and no Hub id (owner/name)")
    if Path(place).is_dir():
        check_sizes(f"{part} {place}", read_config(Path(place)))
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    except _LOAD_ERRORS as error:
        raise UserError(f"{part} {place}: its config cannot be read: {_one_line(error, place)}") from error
    check_plain(f"{part} {place}", config.to_dict())
    return config


def _check_stored(place: str, part: str, shaped: PreTrainedModel, ours: Callable[[str], str | None]) -> None:
    """Compare the stored tensors with the model (on meta) that the config describes, before any of them is loaded.

    `ours` makes the model's name of a stored one; None for a tensor that is not the model's.

    Raises:
        UserError: for weights that are not floating-point, and for missing, unexpected or misshapen tensors.
    """
    folder = _folder_of(place, part)
    try:
        checkpoint = Checkpoint.of(folder)
        names = {name: ours(name) for name in checkpoint.shapes if not name.endswith(COMPUTED)}
        checkpoint.check_floats(name for name, own in names.items() if own is not None)
    except UserError as error:
        raise error.with_line(f"{part} {error}") from error
    found: dict[str, Shape] = {own: checkpoint.shapes[name] for name, own in names.items() if own is not None}
    check_shapes(f"{part} {place}", found, {name: list(each.shape) for name, each in shaped.named_parameters()}, str)


def _load(
    from_pretrained: Callable[..., Any], place: str, part: str, config: PreTrainedConfig, dtype: torch.dtype
) -> PreTrainedModel:
    try:
        model: PreTrainedModel = from_pretrained(place, config=config, dtype=dtype, trust_remote_code=False)
    except _LOAD_ERRORS as error:
        raise UserError(f"{part} {place}: cannot be loaded: {_one_line(error, place)}") from error
    spoilt = [name for name, tensor in model.state_dict().items() if not is_finite(tensor)]
    if spoilt:
        raise UserError(f"{part} {place}: contains NaN or infinity in {some(spoilt)}; allowed are finite numbers")
    return model.train()


def _one_line(error: Exception, place: str) -> str:
    """Return one line for an error of several lines from transformers; an unreadable file is named instead."""
    return why_unreadable(Path(place)) or " ".join(str(error).split())[:300]
