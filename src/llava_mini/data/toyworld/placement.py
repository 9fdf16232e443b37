"""Where things stand in the toy world: rectangles anywhere inside the picture that keep a gap between one another.

Positions are real numbers, so no pooling grid is aligned with them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llava_mini.data.toyworld.drawing import IMAGE_SIZE

Area = tuple[float, float, float, float]  # x and y of the top left corner, width, height; in pixels

_GAP = 1.0


def free_areas(rng: np.random.Generator, sides: Sequence[tuple[float, float]], tries: int = 60) -> list[Area]:
    """Areas of (width, height) `sides`, apart from one another.

    They are placed one by one, each at the first of `tries` positions that is free; when none is, all begin anew.
    """
    placed: list[Area] = []
    while len(placed) < len(sides):
        width, height = sides[len(placed)]
        for u, v in rng.random((tries, 2)).tolist():
            area = (u * (IMAGE_SIZE - width), v * (IMAGE_SIZE - height), width, height)
            if all(_apart(area, other) for other in placed):
                placed.append(area)
                break
        else:
            placed = []
    return placed


def _apart(one: Area, other: Area) -> bool:
    x, y, width, height = one
    a, b, wide, high = other
    return x + width + _GAP <= a or a + wide + _GAP <= x or y + height + _GAP <= b or b + high + _GAP <= y
