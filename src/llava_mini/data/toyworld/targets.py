"""Targets of stage 0, which trains the toy world's vision tower: for every 8x8 patch, the object that covers most.

A patch is background if no object covers more than 10 of its 64 pixels. All targets are classes, so the stage needs
only one cross-entropy per target.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llava_mini.data.toyworld.boards import drawn_at
from llava_mini.data.toyworld.drawing import COLOR_NAMES, IMAGE_SIZE
from llava_mini.data.toyworld.scenes import KINDS, SceneObject

PATCH_SIZE = 8
IGNORE = -100
_CENTER_BINS = 4
_MIN_COVER = 10.0
# Class 0 is background for kind and color, and "none" for digit. Centers count only on objects (elsewhere IGNORE).
TARGET_CLASSES = {
    "kind": 1 + len(KINDS),
    "color": 1 + len(COLOR_NAMES),
    "digit": 11,
    "center_x": _CENTER_BINS,
    "center_y": _CENTER_BINS,
}


def patch_targets(objects: Sequence[Sequence[SceneObject]]) -> dict[str, NDArray[np.int64]]:
    """Return, for every name of `TARGET_CLASSES`, the class of every patch, [number of scenes, 64], row by row."""
    grid = IMAGE_SIZE // PATCH_SIZE
    targets = {name: np.zeros((len(objects), grid * grid), np.int64) for name in TARGET_CLASSES}
    for name in ("center_x", "center_y"):
        targets[name].fill(IGNORE)
    for scene, things in enumerate(objects):
        most = np.full(grid * grid, _MIN_COVER)
        for thing in things:
            cover = np.outer(_overlap(thing.y, thing.size), _overlap(thing.x, thing.size)).ravel()
            mine = cover > most
            most[mine] = cover[mine]
            for name, value in _classes(thing).items():
                targets[name][scene, mine] = value
    return targets


def vision_supervision(stream: str, seed: int, count: int) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.int64]]]:
    """Return the images [count, 64, 64, 3] of a stream's first scenes or boards and their `patch_targets`."""
    made = [drawn_at(stream, seed, index) for index in range(count)]
    return np.stack([scene.image for scene in made]), patch_targets([scene.objects for scene in made])


def _overlap(start: float, size: int) -> NDArray[np.float64]:
    """Return the number of pixels that an interval shares with each patch of a row."""
    edges = np.arange(0, IMAGE_SIZE, PATCH_SIZE, dtype=np.float64)
    shared: NDArray[np.float64] = np.minimum(edges + PATCH_SIZE, start + size) - np.maximum(edges, start)
    return shared.clip(min=0)


def _classes(thing: SceneObject) -> dict[str, int]:
    x, y = thing.center
    return {
        "kind": 1 + KINDS.index(thing.kind),
        "color": 1 + COLOR_NAMES.index(thing.color),
        "digit": 0 if thing.digit is None else 1 + thing.digit,
        "center_x": int(x / IMAGE_SIZE * _CENTER_BINS),
        "center_y": int(y / IMAGE_SIZE * _CENTER_BINS),
    }
