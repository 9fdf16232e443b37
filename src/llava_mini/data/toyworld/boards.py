"""Boards of the toy world: 64x64 images of sixteen objects in four rows of four, too much for one vision token.

Seven objects are colored boxes with a handwritten digit, nine are colored shapes. The free space is divided at random
within each row and between the rows. So the reading order is clear and everything can be asked for at once, but no
pooling grid is aligned with the objects. Like a scene, a board is a pure function of (seed, stream, index).
"""

from __future__ import annotations

import numpy as np

from llava_mini.data.toyworld.digits import digit_bank
from llava_mini.data.toyworld.drawing import COLOR_NAMES, IMAGE_SIZE, SHAPES
from llava_mini.data.toyworld.scenes import (
    BOX,
    BOX_SIZE,
    SHAPE_SIZES,
    Scene,
    SceneObject,
    draw,
    scene_at,
    stream_rng,
    stream_split,
)

BOARD_SETS = ("board-train", "board-val", "board-test")
NUM_ROWS, NUM_BOXES = 4, 7
_SIDE = IMAGE_SIZE - 0.02  # rounding must not push an object out of the image


def drawn_at(stream: str, seed: int, index: int) -> Scene:
    """Return image `index` of a stream with its objects: a board if the stream's name says so, otherwise a scene."""
    return board_at(stream, seed, index) if "board" in stream else scene_at(stream, seed, index)


def board_at(stream: str, seed: int, index: int) -> Scene:
    """Return board `index` of a stream; its objects are in reading order, row by row."""
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
