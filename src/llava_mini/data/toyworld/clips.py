"""Clips of the toy world: 4 to 16 states, one a second, of six or seven objects on one background.

One shape moves in a straight line, two stand still, a ring changes its colour up to three times, to and fro, and two or
three boxes with digits appear one after another and vanish again. No shape occurs twice, so its name is enough. A box
has a colour that nothing else in the clip has, so a colour that appears was not there before. Areas of different
objects never touch, the moving one's whole way included.

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
    background,
    jittered_color,
    paste,
    shape_mask,
)
from llava_mini.data.toyworld.placement import free_areas
from llava_mini.data.toyworld.scenes import BOX, BOX_SIZE, SHAPE_SIZES, SceneObject, stream_rng, stream_split

FEWEST_STATES, MOST_STATES = 4, 16
LAMP = "ring"  # the shape that changes its colour
MOST_CHANGES = 3

_NUM_STILL = 2
_NUM_LATE = (2, 3)
_WAY = (18.0, 28.0)  # pixels from start to end: two or three patches of the tiny vision tower
_LENGTH_SKEW = 3.0  # short clips are more frequent: 6 or 7 states on average


@dataclass(frozen=True)
class Clip:
    """Frames [T, 64, 64, 3] uint8, one a second, and the objects that stand in each of them.

    No state has two objects of one kind. Shapes keep their kind, boxes their colour too.
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
    """A clip whose boxes hold some of `digits`."""
    num_states = FEWEST_STATES + int((MOST_STATES - FEWEST_STATES + 1) * rng.random() ** _LENGTH_SKEW)
    num_late = int(rng.integers(_NUM_LATE[0], min(_NUM_LATE[1], num_states - 2) + 1))
    samples = rng.integers(len(digits.labels), size=num_late)
    tracks = _tracks(rng, num_states, digits.labels[samples].tolist())
    frames = _draw(rng, tracks, digits.images[samples])
    states = [tuple(track.at(t) for track in tracks if track.there[t]) for t in range(num_states)]
    if rng.random() < 0.5:
        frames, states = frames[::-1], states[::-1]
    return Clip(np.ascontiguousarray(frames), tuple(states))


def _tracks(rng: np.random.Generator, num_states: int, digits: list[int]) -> list[_Track]:
    """The shapes, one of which moves, the ring, and the boxes with `digits`, in this order."""
    others = [shape for shape in SHAPES if shape != LAMP]
    shapes = [others[i] for i in rng.permutation(len(others))[: 1 + _NUM_STILL]]
    lasting_colors, box_colors = _colors(rng, len(digits))
    sizes = rng.integers(SHAPE_SIZES[0], SHAPE_SIZES[1] + 1, len(shapes) + 1).tolist() + [BOX_SIZE] * len(digits)
    # Those that stand still have a way too, in whose middle they stand, and any of them could be the one that moves:
    # else the middle frame would show which one it is.
    ways = np.zeros((len(sizes), 2))
    ways[range(len(shapes)), rng.integers(2, size=len(shapes))] = rng.uniform(*_WAY, len(shapes))
    areas = free_areas(rng, sizes, [(right, down) for right, down in ways.tolist()])
    corners = [np.tile(area[:2], (num_states, 1)) for area in areas]
    mover = int(rng.integers(len(shapes)))
    corners[mover] += np.linspace(-0.5, 0.5, num_states)[:, None] * ways[mover]
    worn = [lasting_colors[i] for i in rng.permutation(len(shapes))]
    colors = [[color] * num_states for color in worn + box_colors]
    colors.insert(len(shapes), _changing(rng, num_states, (lasting_colors[0], lasting_colors[1])))
    there = [np.ones(num_states, bool)] * (len(shapes) + 1) + _visits(rng, num_states, len(digits))
    kinds = [*((shape, None) for shape in (*shapes, LAMP)), *((BOX, digit) for digit in digits)]
    return [_Track(*kind, *rest) for kind, *rest in zip(kinds, sizes, corners, colors, there, strict=True)]


def _colors(rng: np.random.Generator, num_late: int) -> tuple[list[str], list[str]]:
    """Colours of the shapes that last, the first two of which are the ring's too, and of the boxes."""
    names = [COLOR_NAMES[i] for i in rng.permutation(len(COLOR_NAMES))]
    late, others = names[:num_late], names[num_late:]
    return [*others[:2], others[int(rng.integers(len(others)))]], late


def _changing(rng: np.random.Generator, num_states: int, colors: tuple[str, str]) -> list[str]:
    """The ring's colour in every state: 0 to 3 changes between two colours, all numbers equally likely.

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


def _draw(rng: np.random.Generator, tracks: list[_Track], ink: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[T, 64, 64, 3]; `ink` holds the digits of the boxes in order. An object has one tone of each of its colours."""
    empty = background(rng)
    margin = (BOX_SIZE - DIGIT_SIZE) // 2
    frames = np.repeat(empty[None], len(tracks[0].colors), axis=0)
    digits = iter(ink)
    for track in tracks:
        is_box = track.kind == BOX
        tones = {color: jittered_color(rng, color) for color in sorted(set(track.colors))}
        mask = np.ones((BOX_SIZE, BOX_SIZE), np.float32) if is_box else shape_mask(track.kind, track.size)
        digit = next(digits) if is_box else None
        for t in np.flatnonzero(track.there):
            x, y = track.corners[t].tolist()
            paste(frames[t], mask, x, y, tones[track.colors[t]])
            if digit is not None:
                paste(frames[t], digit, x + margin, y + margin, INK)
    return np.clip(frames, 0, 255).astype(np.uint8)
