"""Pixels of the toy world: backgrounds, shapes, handwritten digits, free positions, pasting between pixels.

Only elementwise arithmetic is used (no BLAS), so that a seed gives the same image on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Pixels = NDArray[np.float32]
Split = Literal["train", "val", "test"]
Area = tuple[float, float, float, float]  # x and y of the top left corner, width, height; in pixels

IMAGE_SIZE, DIGIT_SIZE = 64, 12
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (235, 215, 50),
    "purple": (150, 50, 180),
    "white": (245, 245, 245),
}
COLOR_NAMES = tuple(COLORS)
INK = np.array((15, 15, 15), np.float32)

_SUPERSAMPLING = 4
_BRIGHTNESS = (70.0, 115.0)
_TINT, _TEXTURE, _GRAIN, _COLOR_JITTER = 6.0, 14.0, 6.0, 8.0
_COARSE = 8
_PLACE = np.arange(IMAGE_SIZE, dtype=np.float32) * (_COARSE - 1) / (IMAGE_SIZE - 1)
_LEFT = np.minimum(_PLACE.astype(np.int64), _COARSE - 2)
_WEIGHT = (_PLACE - _LEFT).astype(np.float32)
_GAP, _TRIES = 1.0, 60
_TRAIN_END, _VAL_END = 0.7, 0.8


@cache
def shape_mask(shape: str, size: int) -> Pixels:
    """Return the coverage [size, size], between 0 and 1, of a shape that fills its square."""
    side = size * _SUPERSAMPLING
    image = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(image)
    end = side - 1
    if shape == "circle":
        draw.ellipse((0, 0, end, end), fill=255)
    elif shape == "square":
        draw.rectangle((side * 0.06, side * 0.06, side * 0.94, side * 0.94), fill=255)
    elif shape == "triangle":
        draw.polygon([(side / 2, 0), (0, end), (end, end)], fill=255)
    elif shape == "star":
        draw.polygon(_star_corners(side), fill=255)
    elif shape == "cross":
        draw.rectangle((side * 0.34, 0, side * 0.66, end), fill=255)
        draw.rectangle((0, side * 0.34, end, side * 0.66), fill=255)
    elif shape == "ring":
        draw.ellipse((0, 0, end, end), fill=255)
        draw.ellipse((side * 0.27, side * 0.27, side * 0.73, side * 0.73), fill=0)
    else:
        raise ValueError(f"unknown shape {shape!r}; allowed: {', '.join(SHAPES)}")
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS), np.float32) / np.float32(255)


def _star_corners(side: int) -> list[tuple[float, float]]:
    """Return the ten corners of a five-pointed star, the first at the top."""
    angles = -np.pi / 2 + np.arange(10) * np.pi / 5
    radii = np.where(np.arange(10) % 2 == 0, side / 2, side * 0.2)
    return [(side / 2 + r * np.cos(a), side / 2 + r * np.sin(a)) for r, a in zip(radii, angles, strict=True)]


def background(rng: np.random.Generator) -> Pixels:
    """Return a background [64, 64, 3]: slightly tinted gray, blotches interpolated from an 8x8 grid, and grain."""
    draws = rng.standard_normal(3 + _COARSE * _COARSE * 4, dtype=np.float32)
    coarse = draws[3:].reshape(_COARSE, _COARSE, 4) * _TEXTURE
    coarse = coarse[..., :3] * 0.5 + coarse[..., 3:]
    rows = coarse[_LEFT] + (coarse[_LEFT + 1] - coarse[_LEFT]) * _WEIGHT[:, None, None]
    image: Pixels = rows[:, _LEFT] + (rows[:, _LEFT + 1] - rows[:, _LEFT]) * _WEIGHT[None, :, None]
    image += np.float32(rng.uniform(*_BRIGHTNESS)) + draws[:3] * _TINT
    image += rng.standard_normal((IMAGE_SIZE, IMAGE_SIZE, 1), dtype=np.float32) * _GRAIN
    return image


def jittered_color(rng: np.random.Generator, color: str) -> Pixels:
    """Return the named color [3] with random jitter."""
    return np.array(COLORS[color], np.float32) + rng.standard_normal(3, dtype=np.float32) * _COLOR_JITTER


def paste(image: Pixels, mask: Pixels, x: float, y: float, color: Pixels) -> None:
    """Paint `color` [3] through `mask` [s, s] with its top left corner at (x, y), in place.

    A position between pixels spreads the mask over its four neighbors (bilinear).
    """
    size = len(mask)
    column, row = int(x), int(y)
    right, down = np.float32(x - column), np.float32(y - row)
    wide = np.zeros((size, size + 1), np.float32)
    wide[:, :-1] = mask * (1 - right)
    wide[:, 1:] += mask * right
    shifted = np.zeros((size + 1, size + 1), np.float32)
    shifted[:-1] = wide * (1 - down)
    shifted[1:] += wide * down
    window = image[row : row + size + 1, column : column + size + 1]
    alpha = shifted[: window.shape[0], : window.shape[1], None]
    window += (color - window) * alpha


def free_areas(
    rng: np.random.Generator, sizes: Sequence[int], ways: Sequence[tuple[float, float]] | None = None
) -> list[Area]:
    """Return squares anywhere inside the image with a gap between one another, each at the first random position free.

    Positions are real numbers, so no pooling grid is aligned with them. If none of 60 positions is free for a square,
    the placement of all squares starts again.

    `ways` are the paths of the squares to the right and down in pixels, half backward and half forward from their
    positions. No other square blocks them, and they do not leave the image. Default: no square moves.
    """
    ways = ways or [(0.0, 0.0)] * len(sizes)
    placed: list[tuple[Area, Area]] = []
    while len(placed) < len(sizes):
        size, (right, down) = sizes[len(placed)], ways[len(placed)]
        for u, v in rng.random((_TRIES, 2)).tolist():
            x, y = u * (IMAGE_SIZE - size - right), v * (IMAGE_SIZE - size - down)
            reach = (x, y, size + right, size + down)
            area = (x + right / 2, y + down / 2, float(size), float(size))
            if all(_apart(area, far) and _apart(reach, near) for near, far in placed):
                placed.append((area, reach))
                break
        else:
            placed = []
    return [area for area, _ in placed]


def _apart(one: Area, other: Area) -> bool:
    x, y, width, height = one
    a, b, wide, high = other
    return x + width + _GAP <= a or a + wide + _GAP <= x or y + height + _GAP <= b or b + high + _GAP <= y


@dataclass(frozen=True)
class DigitBank:
    """The digits of one split: rows of scikit-learn's data set [n], ink from 0 to 1 [n, 12, 12], and labels [n]."""

    indices: NDArray[np.int64]
    images: NDArray[np.float32]
    labels: NDArray[np.int64]


@cache
def digit_bank(split: Split) -> DigitBank:
    """Return the handwritten digits of a split, enlarged from 8x8 to 12x12 pixels.

    The 1797 digits come with scikit-learn. A fixed permutation assigns 70 % to training, 10 % to validation and 20 % to
    test, whatever the seed of a world. So no test digit is a training digit in any world.
    """
    from sklearn.datasets import load_digits  # takes half a second; imported only where scenes are made

    data = load_digits()
    # NumPy's policy freezes the stream of RandomState, so the split cannot change with a new version.
    order = np.random.RandomState(0).permutation(len(data.target))
    train_end, val_end = int(_TRAIN_END * len(order)), int(_VAL_END * len(order))
    rows = {"train": order[:train_end], "val": order[train_end:val_end], "test": order[val_end:]}[split]
    ink = (data.images[rows] * 255 / 16).astype(np.uint8)
    size = (DIGIT_SIZE, DIGIT_SIZE)
    large = np.stack([np.asarray(Image.fromarray(digit).resize(size, Image.Resampling.BILINEAR)) for digit in ink])
    images: NDArray[np.float32] = large.astype(np.float32) / np.float32(255)
    return DigitBank(rows.astype(np.int64), images, data.target[rows].astype(np.int64))
