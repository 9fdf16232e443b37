"""Load weights into a model: from folders of checkpoints, or from another project's vision tower and language model."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Container, Sequence
from pathlib import Path

import torch

from llava_mini.config.types import Parts
from llava_mini.errors import UserError
from llava_mini.files import read_json, reading
from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.models.configuration import PARTS_BETWEEN
from llava_mini.models.initialization import default_dtype, initialize
from llava_mini.models.interop.checkpoint import Checkpoint, some
from llava_mini.models.interop.folders import stored_shapes
from llava_mini.models.interop.parts import load_language_model, load_vision_tower

log = logging.getLogger("llava_mini")


def load_parts(
    model: LlavaMiniForConditionalGeneration, parts: Parts, device: torch.device, dtype: torch.dtype
) -> None:
    """Load vision tower and language model of `parts` into a model of their shape on meta; initialize its other parts.

    Raises:
        UserError: a part cannot be found or loaded.
    """
    load_tower(model, parts, device, dtype)
    place = parts.language_model
    language_model = load_language_model(place, dtype)
    model.language_model = language_model.to(device)
    model.config.text_config = language_model.config  # one config for both, as in a new model
    log.info("language_model: weights of %s", place)
    with default_dtype(dtype):
        initialize(model, PARTS_BETWEEN, device)


def load_tower(
    model: LlavaMiniForConditionalGeneration, parts: Parts, device: torch.device, dtype: torch.dtype
) -> None:
    """Load the vision tower alone, as `load_parts` does."""
    place = parts.vision_tower
    tower = load_vision_tower(place, dtype)
    model.vision_tower = tower.to(device)
    model.config.vision_config = tower.config
    log.info("vision_tower: weights of %s", place)


@torch.no_grad()
def load_weights(
    model: LlavaMiniForConditionalGeneration, folders: Sequence[Path], without: Container[str] = ()
) -> set[str]:
    """Load the parts that the checkpoints of folders contain, file by file, and return them; others are unchanged.

    Of a tensor in two folders the later one is used. A checkpoint has a part completely or not at all. So no part
    trains with a random tensor that its checkpoint has lost.

    Raises:
        UserError: a file is missing, empty or unreadable, tensors of a part are missing, or a tensor is not in the
            model or has another shape there.
    """
    checkpoints = [_checkpoint_of(folder) for folder in folders]
    own = model.state_dict()
    wanted_names: set[str] = set()
    for checkpoint in checkpoints:
        wanted = {name: shape for name, shape in checkpoint.shapes.items() if _part(name) not in without}
        checkpoint.check_floats(name for name in wanted if name in own and own[name].is_floating_point())
        for name, shape in wanted.items():
            if name not in own or list(own[name].shape) != shape:
                has = f"shape {list(own[name].shape)}" if name in own else "no such tensor"
                raise UserError(f"{checkpoint.folder}: {name} has shape {shape}, the model has {has}")
        wanted_names |= wanted.keys()
    parts = {_part(name) for name in wanted_names}
    missing = [name for name in stored_shapes(model) if _part(name) in parts and name not in wanted_names]
    if missing:
        named = some(f"{name} {list(own[name].shape)}" for name in missing)
        where = ", ".join(map(str, folders))
        allowed = "whole parts, and parts left out as a whole"
        why = f"model.weights: {where}: missing tensors: {named}; allowed are {allowed}"
        raise UserError(why, key="model.weights", value=where, allowed=allowed)
    for checkpoint in checkpoints:
        _check_hash(checkpoint.folder / "model.safetensors")
        for name, tensor in checkpoint.stream(wanted_names):
            own[name].copy_(tensor)
        if here := sorted({_part(name) for name in wanted_names & checkpoint.shapes.keys()}):
            log.info("%s: weights of %s", checkpoint.folder, ", ".join(here))
    return parts


def holds(folders: Sequence[Path], part: str) -> bool:
    """Whether the checkpoint of any folder contains weights of a part.

    Raises:
        UserError: a file is missing, empty or unreadable.
    """
    return any(_part(name) == part for folder in folders for name in _checkpoint_of(folder).shapes)


def _checkpoint_of(folder: Path) -> Checkpoint:
    if not any(folder.glob("model*.safetensors*")):
        why = f"model.weights: {folder / 'model.safetensors'} is missing; `make world` makes the toy world's"
        raise UserError(why, key="model.weights", value=folder)
    try:
        return Checkpoint.of(folder)
    except UserError as error:
        raise UserError(f"model.weights: {error}", key="model.weights", value=folder) from error


def _part(name: str) -> str:
    return name.split(".")[0]


def _check_hash(path: Path) -> None:
    """Compare weights with the hash in the recipe next to them, if there is one."""
    recipe = path.with_name("recipe.json")
    if recipe.is_file():
        expected = str(read_json(recipe).get("sha256"))
        with reading(path):
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != expected:
            raise UserError(f"{path}: sha256 is {found[:12]}, {recipe.name} says {expected[:12]}; restore it")
