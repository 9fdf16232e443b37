"""Conversion of a folder of ours to the official release's, tensor by tensor."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from llava_mini.errors import refused
from llava_mini.files import copy_file, read_json
from llava_mini.models.configuration import CLIP_VIT_L_336, LlavaMiniConfig
from llava_mini.models.interop import official
from llava_mini.models.interop.checkpoint import Checkpoint, check_shapes
from llava_mini.models.interop.folders import PROCESSOR_FILE, floating, on_meta, source_config, stored_shapes, written
from llava_mini.models.interop.json_config import config_trusted
from llava_mini.models.interop.parts import CLIP_ID, vision_config_of
from llava_mini.models.interop.shards import ShardWriter
from llava_mini.views import check_mode

log = logging.getLogger("llava_mini")

_TEXT_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json",
)  # fmt: skip


def convert_to_official(source: Path, target: Path, vision_tower: str = CLIP_ID) -> None:
    """Convert our folder to the official release's.

    `vision_tower` is the tower's name in the release's config; its weights are in the folder all the same.

    Raises:
        UserError: `source` is not a model of ours or one that the release cannot express, `vision_tower` is a folder
            with another tower, or `target` exists.
    """
    source_config(source, target)
    with config_trusted(source):
        config = LlavaMiniConfig.from_pretrained(source)
        fields = official.official_config(config, _views(source), vision_tower)
    checkpoint = Checkpoint.of(source)
    model = on_meta(source, config)
    checkpoint.check_floats(floating(model))
    check_shapes(source, checkpoint.shapes, stored_shapes(model), str)
    _check_tower(source, config, vision_tower)
    with written(target) as folder:
        writer = ShardWriter(folder)
        for name, tensor in checkpoint.stream():
            writer.add(official.LAYOUT.theirs(name), tensor)
        writer.close()
        dtype = str(checkpoint.dtype).removeprefix("torch.")
        (folder / "config.json").write_text(json.dumps({**fields, "torch_dtype": dtype}, indent=2) + "\n")
        for name in _TEXT_FILES:
            if (source / name).is_file():
                copy_file(source / name, folder / name)
    log.info("%s: %d tensors under the official release's names", target, len(checkpoint.shapes))


def _views(source: Path) -> str:
    """View mode of the model, which the release's config contains and ours leaves to the processor."""
    path = source / PROCESSOR_FILE
    if not path.is_file():
        log.warning("%s: has no %s: written is a model that was trained with views=square", source, PROCESSOR_FILE)
        return "square"
    views = str(read_json(path).get("views", "square"))
    check_mode(views)
    return views


def _check_tower(source: Path, config: LlavaMiniConfig, vision_tower: str) -> None:
    """Check that the release will read the right shape, where the named tower is a local folder or known."""
    own = config.vision_config.to_dict()
    keys = [key for key in CLIP_VIT_L_336 if key != "projection_dim"]  # which belongs to a layer after the tower
    if Path(vision_tower).is_dir():
        theirs = vision_config_of(vision_tower).to_dict()
        if other := [f"{key}={theirs[key]}, {source} has {own[key]}" for key in keys if theirs[key] != own[key]]:
            raise refused("vision_tower", vision_tower, f"another vision tower ({other[0]})")
        return
    if vision_tower != CLIP_ID:
        log.warning(
            "the release reads the vision tower's shape from %s, which was not read; needed is %s",
            vision_tower, ", ".join(f"{key}={own[key]}" for key in keys),
        )  # fmt: skip
    elif other := [f"{key}={own[key]}" for key in keys if own[key] != CLIP_VIT_L_336[key]]:
        log.warning(
            "%s: the vision tower is no CLIP ViT-L/14-336 (%s), and the release will read its shape from %s: "
            "vision_tower names a place that has it", source, ", ".join(other), vision_tower,
        )  # fmt: skip
