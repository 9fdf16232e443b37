"""Clips of the toy world: 4 to 16 states, one a second, of six or seven objects on one background.

One shape moves in a straight line, two or three appear one after another and vanish again, two stand still, and a box
with a digit changes its colour up to three times, to and fro. Every shape occurs once, so its name is enough. What
appears has a colour that nothing else in the clip has, so a colour that appears was not there before. Areas of
different objects never touch, the moving one's whole way included.

Every clip is a pure function of (seed, stream, index), and as likely as the same clip backwards. So frames without
their order cannot tell north from south or first from last, and the middle frame tells nothing of a direction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llava_mini.data.toyworld.digits import DIGIT_SIZE, DigitBank, digit_bank
from llava_mini.data.toyworld.drawing import (
    COLOR_NAMES,
    INK,
    SHAPES,
    Picture,
    background,
    jittered_color,
    paste,
    shape_mask,
)
from llava_mini.data.toyworld.placement import free_areas
from llava_mini.data.toyworld.scenes import BOX, BOX_SIZE, SHAPE_SIZES, SceneObject, stream_rng, stream_split

FEWEST_STATES, MOST_STATES = 4, 16
MOST_CHANGES = 3

_NUM_STILL = 2
_NUM_LATE = (2, 3)
_WAY = (16.0, 24.0)  # pixels from start to end: two to three patches of the tiny vision tower
_LENGTH_SKEW = 3.0  # short clips are more frequent: 6 or 7 states on average


@dataclass(frozen=True)
class Clip:
    """Frames [T, 64, 64, 3] uint8, one a second, and the objects that stand in each of them.

    An object keeps its kind and size from state to state, and no two have the same kind.
    """

    frames: NDArray[np.uint8]
    states: tuple[tuple[SceneObject, ...], ...]


@dataclass(frozen=True)
class _Track:
    """One object through a clip of T states: corners [T, 2], colours by name, whether it is there [T]."""

    kind: str
    digit: int | None
    size: int
    corners: NDArray[np.float64]
    colors: list[str]
    there: NDArray[np.bool_]

    def at(self, t: int) -> SceneObject:
        """The object in state `t`."""
        x, y = self.corners[t].tolist()
        return SceneObject(self.kind, self.colors[t], self.digit, x, y, self.size)


def clip_at(stream: str, seed: int, index: int) -> Clip:
    """Clip `index` of a stream."""
    return make_clip(stream_rng(stream, seed, index, 0), digit_bank(stream_split(stream)))


def make_clip(rng: np.random.Generator, digits: DigitBank) -> Clip:
    """A clip whose box holds one of `digits`."""
    num_states = FEWEST_STATES + int((MOST_STATES - FEWEST_STATES + 1) * rng.random() ** _LENGTH_SKEW)
    num_late = int(rng.integers(_NUM_LATE[0], min(_NUM_LATE[1], num_states - 2) + 1))
    sample = int(rng.integers(len(digits.labels)))
    tracks = _tracks(rng, num_states, num_late, int(digits.labels[sample]))
    frames = _draw(rng, tracks, digits.images[sample])
    states = [tuple(track.at(t) for track in tracks if track.there[t]) for t in range(num_states)]
    if rng.random() < 0.5:
        frames, states = frames[::-1], states[::-1]
    return Clip(np.ascontiguousarray(frames), tuple(states))


def _tracks(rng: np.random.Generator, num_states: int, num_late: int, digit: int) -> list[_Track]:
    """The box, the shape that moves, those that stand still and those that appear, in this order."""
    shapes = [SHAPES[i] for i in rng.permutation(len(SHAPES))]
    lasting_colors, late_colors = _colors(rng, num_late)
    count = 1 + _NUM_STILL + num_late
    sizes = [BOX_SIZE, *rng.integers(SHAPE_SIZES[0], SHAPE_SIZES[1] + 1, count).tolist()]
    way = np.zeros(2)
    way[int(rng.integers(2))] = rng.uniform(*_WAY)
    areas = free_areas(rng, [(size + way[0] * (i == 1), size + way[1] * (i == 1)) for i, size in enumerate(sizes)])
    corners = [np.tile(area[:2], (num_states, 1)) for area in areas]
    corners[1] = corners[1] + np.linspace(0, 1, num_states)[:, None] * way
    box_colors = _changing(rng, num_states, (lasting_colors[0], lasting_colors[1]))
    worn = [lasting_colors[i] for i in rng.permutation(1 + _NUM_STILL)] + late_colors
    colors = [box_colors, *([color] * num_states for color in worn)]
    always = np.ones(num_states, bool)
    there = [always] * (2 + _NUM_STILL) + _visits(rng, num_states, num_late)
    kinds = [(BOX, digit), *((shape, None) for shape in shapes[:count])]
    return [_Track(*kind, *rest) for kind, *rest in zip(kinds, sizes, corners, colors, there, strict=True)]


def _colors(rng: np.random.Generator, num_late: int) -> tuple[list[str], list[str]]:
    """Colours of the shapes that last, the first two of which are the box's too, and of those that appear."""
    names = [COLOR_NAMES[i] for i in rng.permutation(len(COLOR_NAMES))]
    late, others = names[:num_late], names[num_late:]
    return [*others[:2], others[int(rng.integers(len(others)))]], late


def _changing(rng: np.random.Generator, num_states: int, colors: tuple[str, str]) -> list[str]:
    """The box's colour in every state: 0 to 3 changes between two colours, all numbers equally likely.

    With any change, how many states have which colour does not depend on the number of changes.
    """
    changes = int(rng.integers(MOST_CHANGES + 1))
    one, other = (colors[i] for i in rng.permutation(2))
    if changes == 0:
        return [one] * num_states
    others = int(rng.integers(2, num_states - 1))
    counts = {True: num_states - others, False: others}
    lengths = [0] * (changes + 1)
    for parity, count in counts.items():
        runs = [i for i in range(changes + 1) if (i % 2 == 0) == parity]
        for run, length in zip(runs, _parts(rng, count, len(runs)), strict=True):
            lengths[run] = length
    return [(one, other)[i % 2] for i, length in enumerate(lengths) for _ in range(length)]


def _parts(rng: np.random.Generator, total: int, count: int) -> list[int]:
    """`count` numbers of 1 or more with sum `total`, all such lists equally likely."""
    cuts = np.sort(rng.permutation(total - 1)[: count - 1]) + 1
    return np.diff([0, *cuts, total]).tolist()


def _visits(rng: np.random.Generator, num_states: int, count: int) -> list[NDArray[np.bool_]]:
    """When each of `count` objects is there: one after another, none in the first or the last state."""
    # Gap, stay, gap, stay, ..., gap. The gaps between two stays may be empty, so one is added to them and taken off.
    parts = _parts(rng, num_states + count - 1, 2 * count + 1)
    lengths = [length - (0 < i < 2 * count and i % 2 == 0) for i, length in enumerate(parts)]
    owners = np.repeat(np.arange(2 * count + 1), lengths)
    return [owners == 2 * i + 1 for i in range(count)]


def _draw(rng: np.random.Generator, tracks: list[_Track], ink: Picture) -> NDArray[np.uint8]:
    """[T, 64, 64, 3]; `ink` is the digit of the box. An object has one tone of each of its colours."""
    empty = background(rng)
    margin = (BOX_SIZE - DIGIT_SIZE) // 2
    frames = np.repeat(empty[None], len(tracks[0].colors), axis=0)
    for track in tracks:
        tones = {color: jittered_color(rng, color) for color in sorted(set(track.colors))}
        mask = np.ones((BOX_SIZE, BOX_SIZE), np.float32) if track.kind == BOX else shape_mask(track.kind, track.size)
        for t in np.flatnonzero(track.there):
            x, y = track.corners[t].tolist()
            paste(frames[t], mask, x, y, tones[track.colors[t]])
            if track.kind == BOX:
                paste(frames[t], ink, x + margin, y + margin, INK)
    return np.clip(frames, 0, 255).astype(np.uint8)
