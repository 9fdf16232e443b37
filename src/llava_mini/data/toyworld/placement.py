"""Positions of objects in the toy world: rectangles anywhere inside the image, with a gap between one another.

Positions are real numbers, so no pooling grid is aligned with them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llava_mini.data.toyworld.drawing import IMAGE_SIZE

Area = tuple[float, float, float, float]  # x and y of the top left corner, width, height; in pixels
Way = tuple[float, float]  # to the right and down, in pixels

_GAP = 1.0


def free_areas(
    rng: np.random.Generator, sizes: Sequence[int], ways: Sequence[Way] | None = None, tries: int = 60
) -> list[Area]:
    """Return squares apart from one another, placed one by one, each at the first of `tries` positions that is free.

    If no position is free, the placement of all squares starts again.

    Args:
        rng: Random generator of the positions.
        sizes: Side of each square in pixels.
        ways: Path of each square, half of it backward and half of it forward from its position. No other square blocks
            it, and it does not leave the image. Default: no square moves.
        tries: Number of positions to try for each square.
    """
    ways = ways or [(0.0, 0.0)] * len(sizes)
    placed: list[tuple[Area, Area]] = []
    while len(placed) < len(sizes):
        size, (right, down) = sizes[len(placed)], ways[len(placed)]
        for u, v in rng.random((tries, 2)).tolist():
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
