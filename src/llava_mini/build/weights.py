"""Weights into a model: from folders of checkpoints, or from a vision tower and a language model of other projects."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Container
from pathlib import Path
from typing import Any

import torch

from llava_mini.errors import UserError
from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.models.initialisation import default_dtype, initialise
from llava_mini.models.interop.checkpoint import Checkpoint
from llava_mini.models.interop.parts import load_language_model, load_vision_tower

log = logging.getLogger("llava_mini")


def load_parts(
    model: LlavaMiniForConditionalGeneration, spec: dict[str, Any], device: torch.device, dtype: torch.dtype
) -> None:
    """Put vision tower and language model of `spec["hub"]` into a model on meta, and new weights into its other parts.

    Args:
        model: On meta, in the shape that the parts' configs say; changed in place.
        spec: The config's `model`.
        device: Where the weights go.
        dtype: In which type.

    Raises:
        UserError: a part cannot be found or loaded.
    """
    load_tower(model, spec, device, dtype)
    place = spec["hub"]["language_model"]
    language_model = load_language_model(place, dtype)
    model.language_model = language_model.to(device)
    model.config.text_config = language_model.config  # one config for both, as in a new model
    log.info("language_model: weights of %s", place)
    with default_dtype(dtype):
        initialise(model, ("compressor", "projector", "prefusion"), device)


def load_tower(
    model: LlavaMiniForConditionalGeneration, spec: dict[str, Any], device: torch.device, dtype: torch.dtype
) -> None:
    """The vision tower alone, as `load_parts`."""
    place = spec["hub"]["vision_tower"]
    tower = load_vision_tower(place, dtype)
    model.vision_tower = tower.to(device)
    model.config.vision_config = tower.config
    log.info("vision_tower: weights of %s", place)


@torch.no_grad()
def load_weights(model: LlavaMiniForConditionalGeneration, folder: Path, without: Container[str] = ()) -> bool:
    """Load the parts of a model that a folder's checkpoint holds; file by file, if there are several.

    Args:
        model: Changed in place.
        folder: With safetensors.
        without: Parts that are not wanted.

    Returns:
        Whether it holds any.

    Raises:
        UserError: for a missing or unreadable file, or a tensor that the model does not have or has in another shape.
    """
    path = folder / "model.safetensors"
    if not any(folder.glob("model*.safetensors*")):
        raise UserError(f"model.weights: {path} is missing; `make world` makes the tiny world's")
    try:
        checkpoint = Checkpoint.of(folder)
    except UserError as error:
        raise UserError(f"model.weights: {error}") from error
    own = model.state_dict()
    wanted = {name: shape for name, shape in checkpoint.shapes.items() if name.split(".")[0] not in without}
    checkpoint.check_floats(name for name in wanted if name in own and own[name].is_floating_point())
    for name, shape in wanted.items():
        if name not in own or list(own[name].shape) != shape:
            has = f"shape {list(own[name].shape)}" if name in own else "no such tensor"
            raise UserError(f"{folder}: {name} has shape {shape}, the model has {has}")
    _check_hash(path)
    for name, tensor in checkpoint.stream(wanted):
        own[name].copy_(tensor)
    if wanted:
        log.info("%s: weights of %s", folder, ", ".join(sorted({name.split(".")[0] for name in wanted})))
    return bool(wanted)


def _check_hash(path: Path) -> None:
    """Compare weights with the hash in the recipe beside them, where there is one."""
    recipe = path.with_name("recipe.json")
    if recipe.is_file():
        expected = json.loads(recipe.read_text())["sha256"]
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != expected:
            raise UserError(f"{path}: sha256 is {found[:12]}, {recipe.name} says {expected[:12]}; restore it")
