"""Write a toy world: LLaVA conversations about scenes, boards, clips and texts in WebDataset shards.

    WORLD/world.json         seed, recipe version, and for every set its number of samples and fingerprint
    WORLD/tokenizer/         the tokenizer, in transformers format
    WORLD/instruct-train/    shard set: questions and answers      (likewise instruct-val, instruct-test)
    WORLD/board-train/       shard set: questions about boards     (likewise board-val, board-test)
    WORLD/caption-train/     shard set: statements, no questions   (likewise caption-val)
    WORLD/clip-train/        shard set: questions about clips      (likewise clip-val, clip-test)
    WORLD/text-train/        shard set: questions about texts      (likewise text-val, text-test)

Every set has its own stream of samples, so no sample is in two sets. Images of scenes and boards are stored without
loss; clips and texts are built from LLaVA JSON and mp4 files like a user's own data.
"""

from __future__ import annotations

import io
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.format.shards import write_shards
from llava_mini.data.toyworld.questions import (
    EVALUATED,
    TRAINED,
    Asked,
    board_questions,
    caption,
    question,
    scene_facts,
)
from llava_mini.data.toyworld.scenes import BOARD_SETS, drawn_at, stream_rng, stream_split
from llava_mini.data.toyworld.source_files import build_from_files, llava_record
from llava_mini.data.toyworld.tokenizer import build_tokenizer
from llava_mini.errors import UserError, refused
from llava_mini.files import folder_lock, read_json, remove_leftovers, write_json, writing

log = logging.getLogger("llava_mini")

# Increase it with any change that makes different images or texts from the same seed, or changes the folder's layout.
# The name of the default folder ends in it (conf/data/toyworld.yaml), so worlds of two versions do not collide.
RECIPE_VERSION = 5
DEFAULT_SIZES: dict[str, int] = {  # what `make world` and the sweeps on single images need
    "caption-train": 6000,
    "caption-val": 300,
    "instruct-train": 6000,
    "instruct-val": 300,
    "instruct-test": 400,
    "board-train": 6000,
    "board-val": 300,
    "board-test": 400,
}
BUILT_SETS = ("clip-train", "clip-val", "clip-test", "text-train", "text-val", "text-test")
SETS = (*DEFAULT_SIZES, *BUILT_SETS)
_WORLD_FILE = "world.json"


def make_world(folder: Path | str, *, seed: int, sizes: Mapping[str, int] = DEFAULT_SIZES) -> Path:
    """Make the sets named in `sizes` (name -> samples) that `folder` does not contain yet, and the tokenizer.

    Raises:
        UserError: a set's name or size is invalid, or the folder contains a world of another seed, recipe or size, or
            a damaged world.
    """
    for name, count in sizes.items():
        if name not in SETS or count < 1:
            raise refused(f"data.sizes.{name}", count, allowed=f"{', '.join(SETS)} of 1 sample or more")
    if seed < 0:
        raise refused("seed", seed, "the toy world's", allowed="0 and above")
    root = Path(folder)
    with folder_lock(root):
        remove_leftovers(root)
        world = _existing_world(root, seed)
        for name, count in sizes.items():
            if name not in world["sets"]:
                _make_set(root, world, name, count)
            elif (made := world["sets"][name]["samples"]) != count:
                raise UserError(f"{root} holds {made} samples of {name}, not {count}; delete it or name another folder")
    return root


def toy_sample(name: str, seed: int, index: int) -> tuple[str, dict[str, bytes]]:
    """Return sample `index` of a set of scenes or boards: its key and its members, a PNG and a LLaVA record."""
    scene, text_rng, key = drawn_at(name, seed, index), stream_rng(name, seed, index, 1), f"{name}-{index:06d}"
    if name in BOARD_SETS:
        turns = board_questions(text_rng, scene, TRAINED if stream_split(name) == "train" else EVALUATED)
    else:
        facts = scene_facts(text_rng, scene)
        captioned = name.startswith("caption")
        turns = [Asked(f.kind, "", caption(f)) if captioned else Asked(f.kind, question(f), f.answer) for f in facts]
    record = llava_record(key, turns, image=f"{key}.png")
    png = io.BytesIO()
    Image.fromarray(scene.image).save(png, "PNG", compress_level=1)
    return key, {"json": json.dumps(record).encode(), "png": png.getvalue()}


def _existing_world(root: Path, seed: int) -> dict[str, Any]:
    """Return the checked content of `world.json`, or start a new world; a set is listed only once it is complete."""
    path = root / _WORLD_FILE
    fresh = {"version": RECIPE_VERSION, "seed": seed, "sets": {}}
    if not path.exists():
        with writing(root / "tokenizer"):
            build_tokenizer().save_pretrained(str(root / "tokenizer"))
        return fresh
    try:
        world = read_json(path)
        found = (world["version"], world["seed"])
        fingerprints = {name: made["fingerprint"] for name, made in world["sets"].items() if made["samples"]}
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} does not describe a toy world ({error!r})") from None
    if found != (RECIPE_VERSION, seed):
        raise UserError(
            f"{root} contains a toy world of recipe {found[0]} and seed {found[1]}, not {RECIPE_VERSION} and {seed};"
            " delete it or name another folder"
        )
    for name, fingerprint in fingerprints.items():
        if name not in SETS:
            raise UserError(f"{path} names the set {name}; allowed are {', '.join(SETS)}")
        shards = ShardSet(root / name)
        if shards.fingerprint != fingerprint:
            raise UserError(f"{root / name} is not the set that {path} describes; delete {root}")
        shards.verify()
    return world


def _make_set(root: Path, world: dict[str, Any], name: str, count: int) -> None:
    log.info("making %s samples of %s in %s", f"{count:,}", name, root)
    shutil.rmtree(root / name, ignore_errors=True)  # left by a build that was interrupted
    if name in BUILT_SETS:
        shards = build_from_files(root / name, name, world["seed"], count)
    else:
        shards = write_shards((toy_sample(name, world["seed"], index) for index in range(count)), root / name)
    world["sets"][name] = {"samples": count, "fingerprint": shards.fingerprint}
    write_json(root / _WORLD_FILE, world)
