"""Clips of the toy world: 4 to 16 states, one a second, of four objects on one background.

One shape moves in a straight line, two stand still, and a ring changes its colour up to three times, to and fro. No
shape occurs twice, so its name is enough. Areas of different objects never touch, the moving one's whole way included.

Every clip is a pure function of (seed, stream, index), and as likely as the same clip backwards. So frames without
their order cannot tell north from south or first from last, and the middle frame tells nothing of a direction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llava_mini.data.toyworld.drawing import (
    COLOR_NAMES,
    SHAPES,
    background,
    jittered_color,
    paste,
    shape_mask,
)
from llava_mini.data.toyworld.placement import free_areas
from llava_mini.data.toyworld.scenes import SHAPE_SIZES, SceneObject, stream_rng

FEWEST_STATES, MOST_STATES = 4, 16
LAMP = "ring"  # the shape that changes its colour
MOST_CHANGES = 3

_NUM_STILL = 2
_WAY = (18.0, 28.0)  # pixels from start to end: two or three patches of the tiny vision tower
_LENGTH_SKEW = 3.0  # short clips are more frequent: 6 or 7 states on average


@dataclass(frozen=True)
class Clip:
    """Frames [T, 64, 64, 3] uint8, one a second, and the objects that stand in each of them.

    All objects are in every state, in the same order, and no two are of one kind.
    """

    frames: NDArray[np.uint8]
    states: tuple[tuple[SceneObject, ...], ...]


@dataclass(frozen=True)
class _Track:
    """One object through a clip of T states: corners [T, 2] and colours by name."""

    kind: str
    size: int
    corners: NDArray[np.float64]
    colors: list[str]

    def at(self, t: int) -> SceneObject:
        """The object in state `t`."""
        x, y = self.corners[t].tolist()
        return SceneObject(self.kind, self.colors[t], None, x, y, self.size)


def clip_at(stream: str, seed: int, index: int) -> Clip:
    """Clip `index` of a stream."""
    return make_clip(stream_rng(stream, seed, index, 0))


def make_clip(rng: np.random.Generator) -> Clip:
    """A clip."""
    num_states = FEWEST_STATES + int((MOST_STATES - FEWEST_STATES + 1) * rng.random() ** _LENGTH_SKEW)
    tracks = _tracks(rng, num_states)
    frames = _draw(rng, tracks)
    states = [tuple(track.at(t) for track in tracks) for t in range(num_states)]
    if rng.random() < 0.5:
        frames, states = frames[::-1], states[::-1]
    return Clip(np.ascontiguousarray(frames), tuple(states))


def _tracks(rng: np.random.Generator, num_states: int) -> list[_Track]:
    """The shapes, one of which moves, and the ring."""
    others = [shape for shape in SHAPES if shape != LAMP]
    shapes = [others[i] for i in rng.permutation(len(others))[: 1 + _NUM_STILL]]
    sizes = rng.integers(SHAPE_SIZES[0], SHAPE_SIZES[1] + 1, len(shapes) + 1).tolist()
    # Those that stand still have a way too, in whose middle they stand, and any of them could be the one that moves:
    # else the middle frame would show which one it is.
    ways = np.zeros((len(sizes), 2))
    ways[range(len(shapes)), rng.integers(2, size=len(shapes))] = rng.uniform(*_WAY, len(shapes))
    areas = free_areas(rng, sizes, [(right, down) for right, down in ways.tolist()])
    corners = [np.tile(area[:2], (num_states, 1)) for area in areas]
    mover = int(rng.integers(len(shapes)))
    corners[mover] += np.linspace(-0.5, 0.5, num_states)[:, None] * ways[mover]
    worn = [COLOR_NAMES[i] for i in rng.permutation(len(COLOR_NAMES))[: len(shapes)]]
    # The lamp's colours are others' too, so that a colour alone does not tell what it is on.
    lamp = rng.permutation(len(shapes))[:2]
    colors = [[color] * num_states for color in worn]
    colors.append(_changing(rng, num_states, (worn[lamp[0]], worn[lamp[1]])))
    return [_Track(*track) for track in zip([*shapes, LAMP], sizes, corners, colors, strict=True)]


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


def _draw(rng: np.random.Generator, tracks: list[_Track]) -> NDArray[np.uint8]:
    """[T, 64, 64, 3]; an object has one tone of each of its colours."""
    frames = np.repeat(background(rng)[None], len(tracks[0].colors), axis=0)
    for track in tracks:
        tones = {color: jittered_color(rng, color) for color in sorted(set(track.colors))}
        mask = shape_mask(track.kind, track.size)
        for frame, (x, y), color in zip(frames, track.corners.tolist(), track.colors, strict=True):
            paste(frame, mask, x, y, tones[color])
    return np.clip(frames, 0, 255).astype(np.uint8)
