"""Clips of the toy world: 4 to 16 states, one per second, of four objects on one background.

One shape moves in a straight line, two stand still, and a ring changes up to three times between two colors. No shape
occurs twice, so its name identifies it. Areas of different objects never touch, and this includes the whole path of the
moving one.

Every clip is a pure function of (seed, stream, index), and as likely as the same clip backwards. So without the order
of the frames, north and south or first and last cannot be distinguished, and the middle frame says nothing about a
direction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llava_mini.data.toyworld.drawing import (
    COLOR_NAMES,
    SHAPES,
    background,
    free_areas,
    jittered_color,
    paste,
    shape_mask,
)
from llava_mini.data.toyworld.scenes import SHAPE_SIZES, SceneObject, stream_rng

FEWEST_STATES, MOST_STATES = 4, 16
LAMP = "ring"  # the shape that changes its color
MOST_CHANGES = 3

_NUM_STILL = 2
_WAY = (18.0, 28.0)  # pixels from start to end: two or three patches of the tiny vision tower
_LENGTH_SKEW = 3.0  # short clips are more frequent: 6 or 7 states on average


@dataclass(frozen=True)
class Clip:
    """Frames [T, 64, 64, 3] uint8, one per second, and the objects in each of them.

    All objects are in every state, in the same order, and no two are of the same kind.
    """

    frames: NDArray[np.uint8]
    states: tuple[tuple[SceneObject, ...], ...]


@dataclass(frozen=True)
class _Track:
    """One object in all T states of a clip: corners [T, 2] and color names."""

    kind: str
    size: int
    corners: NDArray[np.float64]
    colors: list[str]

    def at(self, t: int) -> SceneObject:
        """Return the object in state `t`."""
        x, y = self.corners[t].tolist()
        return SceneObject(self.kind, self.colors[t], None, x, y, self.size)


def clip_at(stream: str, seed: int, index: int) -> Clip:
    """Return clip `index` of a stream."""
    return make_clip(stream_rng(stream, seed, index, 0))


def make_clip(rng: np.random.Generator) -> Clip:
    """Return a random clip."""
    num_states = FEWEST_STATES + int((MOST_STATES - FEWEST_STATES + 1) * rng.random() ** _LENGTH_SKEW)
    tracks = _tracks(rng, num_states)
    frames = _draw(rng, tracks)
    states = [tuple(track.at(t) for track in tracks) for t in range(num_states)]
    if rng.random() < 0.5:
        frames, states = frames[::-1], states[::-1]
    return Clip(np.ascontiguousarray(frames), tuple(states))


def _tracks(rng: np.random.Generator, num_states: int) -> list[_Track]:
    """Return the tracks of the shapes, one of which moves, and of the ring."""
    others = [shape for shape in SHAPES if shape != LAMP]
    shapes = [others[i] for i in rng.permutation(len(others))[: 1 + _NUM_STILL]]
    sizes = rng.integers(SHAPE_SIZES[0], SHAPE_SIZES[1] + 1, len(shapes) + 1).tolist()
    # Shapes that stand still get a path too, and stand in its middle. Any of the shapes could be the moving one:
    # otherwise the middle frame would show which one moves.
    ways = np.zeros((len(sizes), 2))
    ways[range(len(shapes)), rng.integers(2, size=len(shapes))] = rng.uniform(*_WAY, len(shapes))
    areas = free_areas(rng, sizes, [(right, down) for right, down in ways.tolist()])
    corners = [np.tile(area[:2], (num_states, 1)) for area in areas]
    mover = int(rng.integers(len(shapes)))
    corners[mover] += np.linspace(-0.5, 0.5, num_states)[:, None] * ways[mover]
    worn = [COLOR_NAMES[i] for i in rng.permutation(len(COLOR_NAMES))[: len(shapes)]]
    # The lamp's colors also occur on other objects, so that a color alone does not identify its object.
    lamp = rng.permutation(len(shapes))[:2]
    colors = [[color] * num_states for color in worn]
    colors.append(_changing(rng, num_states, (worn[lamp[0]], worn[lamp[1]])))
    return [_Track(*track) for track in zip([*shapes, LAMP], sizes, corners, colors, strict=True)]


def _changing(rng: np.random.Generator, num_states: int, colors: tuple[str, str]) -> list[str]:
    """Return the ring's color in every state: 0 to 3 changes between two colors, all numbers equally likely.

    If there is any change, the number of states per color does not depend on the number of changes.
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
    """Return `count` numbers of 1 or more with sum `total`; all such lists are equally likely."""
    cuts = np.sort(rng.permutation(total - 1)[: count - 1]) + 1
    return np.diff([0, *cuts, total]).tolist()


def _draw(rng: np.random.Generator, tracks: list[_Track]) -> NDArray[np.uint8]:
    """Return the frames [T, 64, 64, 3]; an object has one tone of each of its colors."""
    frames = np.repeat(background(rng)[None], len(tracks[0].colors), axis=0)
    for track in tracks:
        tones = {color: jittered_color(rng, color) for color in sorted(set(track.colors))}
        mask = shape_mask(track.kind, track.size)
        for frame, (x, y), color in zip(frames, track.corners.tolist(), track.colors, strict=True):
            paste(frame, mask, x, y, tones[color])
    return np.clip(frames, 0, 255).astype(np.uint8)
