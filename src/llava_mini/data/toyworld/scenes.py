"""Scenes and boards of the toy world: 64x64 images of colored shapes, and of colored boxes with a handwritten digit.

A scene has 5 to 7 objects, two of them boxes, which are anywhere and do not overlap. A board has sixteen in four rows
of four, seven of them boxes: too much for one vision token. Both are pure functions of (seed, stream, index): they do
not depend on how many are made or in what order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llava_mini.data.toyworld.drawing import (
    COLOR_NAMES,
    DIGIT_SIZE,
    IMAGE_SIZE,
    INK,
    SHAPES,
    DigitBank,
    Split,
    background,
    digit_bank,
    free_areas,
    jittered_color,
    paste,
    shape_mask,
)

# The name of a stream ends in its split. Its index in this tuple is part of its seed, so add new streams at the end.
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
BOARD_SETS = ("board-train", "board-val", "board-test")
BOX = "box"
KINDS = (BOX, *SHAPES)

_NUM_BOXES = 2  # of a scene
_NUM_OBJECTS = (5, 7)
BOX_SIZE = 14
SHAPE_SIZES = (11, 14)
_REPEAT_SHAPE = 0.45
NUM_ROWS, NUM_BOXES = 4, 7  # of a board
_SIDE = IMAGE_SIZE - 0.02  # of a board; rounding must not push an object out of the image
_UNCLEAR = 2.5  # pixels; closer to a middle line, the quadrant would be ambiguous


@dataclass(frozen=True)
class SceneObject:
    """A shape or a box; `x`, `y` is its top left corner and `size` its side in pixels; only boxes have a digit."""

    kind: str
    color: str
    digit: int | None
    x: float
    y: float
    size: int

    @property
    def center(self) -> tuple[float, float]:
        """Center (x, y) in pixels."""
        return self.x + self.size / 2, self.y + self.size / 2

    @property
    def quarter(self) -> str:
        """Quarter of the image with the center: `northwest`, `northeast`, `southwest` or `southeast`."""
        x, y = self.center
        return ("north" if y < IMAGE_SIZE / 2 else "south") + ("west" if x < IMAGE_SIZE / 2 else "east")

    @property
    def quadrant(self) -> str | None:
        """The quarter, or None if the center is too close to a middle line."""
        unclear = min(abs(place - IMAGE_SIZE / 2) for place in self.center) < _UNCLEAR
        return None if unclear else self.quarter


@dataclass(frozen=True)
class Scene:
    """An image [64, 64, 3] uint8 and the objects in it."""

    image: NDArray[np.uint8]
    objects: tuple[SceneObject, ...]

    @property
    def boxes(self) -> list[SceneObject]:
        return [thing for thing in self.objects if thing.kind == BOX]

    @property
    def shapes(self) -> list[SceneObject]:
        """All objects except boxes."""
        return [thing for thing in self.objects if thing.kind != BOX]

    @property
    def unique_boxes(self) -> list[SceneObject]:
        """Boxes whose color occurs once among the boxes."""
        return _singles(self.boxes, [thing.color for thing in self.boxes])

    @property
    def unique_shapes(self) -> list[SceneObject]:
        """Shapes whose kind occurs once."""
        return _singles(self.shapes, [thing.kind for thing in self.shapes])

    @property
    def unique_colors(self) -> list[SceneObject]:
        """Shapes whose color occurs once among the shapes (boxes do not count)."""
        return _singles(self.shapes, [thing.color for thing in self.shapes])

    @property
    def placed_shapes(self) -> list[SceneObject]:
        """Unique shapes that are clearly in one quadrant."""
        return [thing for thing in self.unique_shapes if thing.quadrant is not None]


def _singles(things: list[SceneObject], names: list[str]) -> list[SceneObject]:
    count = Counter(names)
    return [thing for thing, name in zip(things, names, strict=True) if count[name] == 1]


def stream_split(stream: str) -> Split:
    """Return the split of the digits that a stream may show."""
    split: dict[str, Split] = {"train": "train", "val": "val", "test": "test"}
    if stream not in STREAMS:
        raise ValueError(f"unknown stream {stream!r}; allowed: {', '.join(STREAMS)}")
    return split[stream.rsplit("-", 1)[1]]


def stream_rng(stream: str, seed: int, index: int, purpose: int) -> np.random.Generator:
    """Return an independent random generator for each (stream, seed, index) and purpose (0 images, 1 texts)."""
    return np.random.default_rng([seed, STREAMS.index(stream), index, purpose])


def scene_at(stream: str, seed: int, index: int) -> Scene:
    """Return scene `index` of a stream."""
    return make_scene(stream_rng(stream, seed, index, 0), digit_bank(stream_split(stream)))


def make_scene(rng: np.random.Generator, digits: DigitBank) -> Scene:
    """Return a scene with digits of `digits`, sampled again until two questions of every kind can be asked about it."""
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
    """Return (shape, color) of the shapes; at least two shapes and two colors occur once; shapes may repeat."""
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
    """Return an image [64, 64, 3] of objects on a random background; `ink` is the digit of each box, [12, 12]."""
    image = background(rng)
    margin = (BOX_SIZE - DIGIT_SIZE) // 2
    boxes = [thing for thing in objects if thing.kind == BOX]
    for thing in (thing for thing in objects if thing.kind != BOX):
        paste(image, shape_mask(thing.kind, thing.size), thing.x, thing.y, jittered_color(rng, thing.color))
    for thing, digit in zip(boxes, ink, strict=True):
        paste(image, _FULL, thing.x, thing.y, jittered_color(rng, thing.color))
        paste(image, digit, thing.x + margin, thing.y + margin, INK)
    return np.clip(image, 0, 255).astype(np.uint8)


def drawn_at(stream: str, seed: int, index: int) -> Scene:
    """Return image `index` of a stream with its objects: a board if the stream's name says so, otherwise a scene."""
    return board_at(stream, seed, index) if "board" in stream else scene_at(stream, seed, index)


def board_at(stream: str, seed: int, index: int) -> Scene:
    """Return board `index` of a stream; its objects are in reading order, row by row.

    The free space is divided at random within each row and between the rows. So the reading order is clear and
    everything can be asked for at once, but no pooling grid is aligned with the objects.
    """
    rng, digits = stream_rng(stream, seed, index, 0), digit_bank(stream_split(stream))
    count = NUM_ROWS**2
    boxed = set(rng.permutation(count)[:NUM_BOXES].tolist())
    drawn = rng.integers(SHAPE_SIZES[0], SHAPE_SIZES[1] + 1, count).tolist()
    sizes = [BOX_SIZE if i in boxed else size for i, size in enumerate(drawn)]
    colors = [COLOR_NAMES[i] for i in rng.integers(len(COLOR_NAMES), size=count)]
    shapes = [SHAPES[i] for i in rng.integers(len(SHAPES), size=count)]
    samples = rng.integers(len(digits.labels), size=NUM_BOXES).tolist()
    labels = iter(digits.labels[samples].tolist())
    objects = tuple(
        SceneObject(BOX, color, next(labels), x, y, size) if i in boxed else SceneObject(shape, color, None, x, y, size)
        for i, (shape, color, (x, y), size) in enumerate(zip(shapes, colors, _corners(rng, sizes), sizes, strict=True))
    )
    return Scene(draw(rng, objects, [digits.images[sample] for sample in samples]), objects)


def _corners(rng: np.random.Generator, sizes: list[int]) -> list[tuple[float, float]]:
    """Return the top left corners of the objects in rows, (x, y) in pixels."""
    corners, top = [], 0.0
    for row, above in enumerate(_gaps(rng, _SIDE - NUM_ROWS * BOX_SIZE)):
        top += above
        in_row, x = sizes[row * NUM_ROWS : (row + 1) * NUM_ROWS], 0.0
        for size, before in zip(in_row, _gaps(rng, _SIDE - sum(in_row)), strict=True):
            x += before
            corners.append((x, top + rng.random() * (BOX_SIZE - size)))
            x += size
        top += BOX_SIZE
    return corners


def _gaps(rng: np.random.Generator, room: float) -> list[float]:
    """Return the pixels before each object of a row, or before each row; the rest of `room` comes after the last."""
    gaps: list[float] = (np.diff(np.sort(rng.random(NUM_ROWS)), prepend=0) * room).tolist()
    return gaps
