"""Scenes of the toy world: 64x64 pictures of 5 to 7 objects, two of which are coloured boxes with a handwritten digit.

Objects stand anywhere (positions are real numbers, so no pooling grid is aligned with them) and do not overlap. Every
scene is a pure function of (seed, stream, index): it does not depend on how many scenes are made or in what order. A
scene is redrawn until two different questions of every kind can be asked about it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llava_mini.data.toyworld.digits import DIGIT_SIZE, DigitBank, Split, digit_bank
from llava_mini.data.toyworld.drawing import (
    COLOR_NAMES,
    IMAGE_SIZE,
    INK,
    SHAPES,
    background,
    jittered_color,
    paste,
    shape_mask,
)
from llava_mini.data.toyworld.placement import free_areas

# The name of a stream ends in its split; its place in this tuple seeds it, so new streams are added at the end.
STREAMS = (
    "vision-train",
    "vision-val",
    "caption-train",
    "caption-val",
    "instruct-train",
    "instruct-val",
    "instruct-test",
    "clip-train",
    "clip-val",
    "clip-test",
    "text-train",
    "text-val",
    "text-test",
    "board-train",
    "board-val",
    "board-test",
    "vision-board-train",
    "vision-board-val",
)
BOX = "box"
KINDS = (BOX, *SHAPES)

_NUM_BOXES = 2
_NUM_OBJECTS = (5, 7)
BOX_SIZE = 14
SHAPE_SIZES = (11, 14)
_REPEAT_SHAPE = 0.45
_UNCLEAR = 2.5  # pixels to a middle line within which a quadrant would be a matter of opinion


@dataclass(frozen=True)
class SceneObject:
    """A shape or a box; `x`, `y` is its top left corner and `size` its side in pixels; only boxes hold a digit."""

    kind: str
    color: str
    digit: int | None
    x: float
    y: float
    size: int

    @property
    def center(self) -> tuple[float, float]:
        """(x, y) in pixels."""
        return self.x + self.size / 2, self.y + self.size / 2

    @property
    def quadrant(self) -> str | None:
        """`northwest`, `northeast`, `southwest` or `southeast`; None when too near a middle line to say."""
        x, y = self.center
        middle = IMAGE_SIZE / 2
        if min(abs(x - middle), abs(y - middle)) < _UNCLEAR:
            return None
        return ("north" if y < middle else "south") + ("west" if x < middle else "east")


@dataclass(frozen=True)
class Scene:
    """A picture [64, 64, 3] uint8 and what stands in it."""

    image: NDArray[np.uint8]
    objects: tuple[SceneObject, ...]

    @property
    def boxes(self) -> list[SceneObject]:
        return [thing for thing in self.objects if thing.kind == BOX]

    @property
    def shapes(self) -> list[SceneObject]:
        """The objects that are no boxes."""
        return [thing for thing in self.objects if thing.kind != BOX]

    @property
    def unique_boxes(self) -> list[SceneObject]:
        """Boxes that their color names without doubt."""
        return _singles(self.boxes, [thing.color for thing in self.boxes])

    @property
    def unique_shapes(self) -> list[SceneObject]:
        """Shapes that their kind names without doubt."""
        return _singles(self.shapes, [thing.kind for thing in self.shapes])

    @property
    def unique_colors(self) -> list[SceneObject]:
        """Shapes that their colour names without doubt (boxes aside)."""
        return _singles(self.shapes, [thing.color for thing in self.shapes])

    @property
    def placed_shapes(self) -> list[SceneObject]:
        """Unique shapes that stand clearly in one quadrant."""
        return [thing for thing in self.unique_shapes if thing.quadrant is not None]


def _singles(things: list[SceneObject], names: list[str]) -> list[SceneObject]:
    count = Counter(names)
    return [thing for thing, name in zip(things, names, strict=True) if count[name] == 1]


def stream_split(stream: str) -> Split:
    """Which digits a stream may show."""
    split: dict[str, Split] = {"train": "train", "val": "val", "test": "test"}
    if stream not in STREAMS:
        raise ValueError(f"unknown stream {stream!r}; allowed: {', '.join(STREAMS)}")
    return split[stream.rsplit("-", 1)[1]]


def stream_rng(stream: str, seed: int, index: int, purpose: int) -> np.random.Generator:
    """An independent generator for each (stream, seed, index) and purpose (0 pictures, 1 texts)."""
    return np.random.default_rng([seed, STREAMS.index(stream), index, purpose])


def scene_at(stream: str, seed: int, index: int) -> Scene:
    """Scene `index` of a stream."""
    return make_scene(stream_rng(stream, seed, index, 0), digit_bank(stream_split(stream)))


def make_scene(rng: np.random.Generator, digits: DigitBank) -> Scene:
    """A scene with digits of `digits`, of which two questions of every kind can be asked."""
    num_shapes = int(rng.integers(_NUM_OBJECTS[0], _NUM_OBJECTS[1] + 1)) - _NUM_BOXES
    while True:
        names = _shape_names(rng, num_shapes)
        sizes = [BOX_SIZE] * _NUM_BOXES + rng.integers(SHAPE_SIZES[0], SHAPE_SIZES[1] + 1, num_shapes).tolist()
        corners = [(x, y) for x, y, _, _ in free_areas(rng, sizes)]
        samples = rng.integers(len(digits.labels), size=_NUM_BOXES).tolist()
        box_colors = rng.permutation(len(COLOR_NAMES))[:_NUM_BOXES].tolist()
        looks: list[tuple[str, str, int | None]] = [
            (BOX, COLOR_NAMES[c], int(digits.labels[d])) for c, d in zip(box_colors, samples, strict=True)
        ]
        looks += [(shape, color, None) for shape, color in names]
        objects = tuple(
            SceneObject(*look, *corner, size) for look, corner, size in zip(looks, corners, sizes, strict=True)
        )
        scene = Scene(_EMPTY, objects)
        if len(scene.placed_shapes) >= 2:
            return Scene(draw(rng, objects, [digits.images[sample] for sample in samples]), objects)


_EMPTY = np.zeros((0, 0, 3), np.uint8)


def _shape_names(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """(shape, colour) of the shapes, with two shapes and two colours that occur once; shapes repeat now and then."""
    while True:
        draws = rng.random((count, 3)).tolist()
        shapes: list[str] = []
        for repeat, which, _ in draws:
            pool = shapes if shapes and repeat < _REPEAT_SHAPE else SHAPES
            shapes.append(pool[int(which * len(pool))])
        colors = [COLOR_NAMES[int(color * len(COLOR_NAMES))] for _, _, color in draws]
        if all(list(Counter(names).values()).count(1) >= 2 for names in (shapes, colors)):
            return list(zip(shapes, colors, strict=True))


_FULL = np.ones((BOX_SIZE, BOX_SIZE), np.float32)


def draw(
    rng: np.random.Generator, objects: Sequence[SceneObject], ink: Sequence[NDArray[np.float32]]
) -> NDArray[np.uint8]:
    """An image [64, 64, 3] of `objects` on a random background.

    Args:
        rng: Generator of background and color jitter.
        objects: Shapes and boxes; they do not overlap.
        ink: The digits of the boxes, [12, 12] each, in the order of the boxes.
    """
    image = background(rng)
    margin = (BOX_SIZE - DIGIT_SIZE) // 2
    boxes = [thing for thing in objects if thing.kind == BOX]
    for thing in (thing for thing in objects if thing.kind != BOX):
        paste(image, shape_mask(thing.kind, thing.size), thing.x, thing.y, jittered_color(rng, thing.color))
    for thing, digit in zip(boxes, ink, strict=True):
        paste(image, _FULL, thing.x, thing.y, jittered_color(rng, thing.color))
        paste(image, digit, thing.x + margin, thing.y + margin, INK)
    return np.clip(image, 0, 255).astype(np.uint8)
