"""The toy world as stage 0 reads it: images as pixels for the vision tower, and the object in each of their patches.

All images are drawn at once and stored in memory, one byte per color channel. An image is normalized when it is read.

Shapes: H x W pixels of an image, P patches of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from llava_mini.batch import IGNORE
from llava_mini.data.toyworld.drawing import COLOR_NAMES, IMAGE_SIZE
from llava_mini.data.toyworld.scenes import KINDS, SceneObject, drawn_at

PATCH_SIZE = 8
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


class Scenes(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """First images of a stream: pixels [3, H, W] float32 and, for every target, the class of each patch, [P] int64.

    `mean` and `std` are those of each color channel, from 0 to 1.
    """

    def __init__(self, stream: str, seed: int, count: int, *, mean: Sequence[float], std: Sequence[float]):
        images, targets = vision_supervision(stream, seed, count)
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2)
        self.targets = {name: torch.from_numpy(target) for name, target in targets.items()}
        self.mean = torch.tensor(mean)[:, None, None]
        self.std = torch.tensor(std)[:, None, None]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = (self.images[index] / 255 - self.mean) / self.std
        return pixels, {name: target[index] for name, target in self.targets.items()}


def patch_targets(objects: Sequence[Sequence[SceneObject]]) -> dict[str, NDArray[np.int64]]:
    """Return, for every name of `TARGET_CLASSES`, the class of every patch, [number of scenes, 64], row by row.

    The class is that of the object that covers most of the patch, or background if none covers more than 10 of its 64
    pixels. All targets are classes, so stage 0 needs only one cross-entropy per target.
    """
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
