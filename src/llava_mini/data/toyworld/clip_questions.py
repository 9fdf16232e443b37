"""Questions about clips and their answers, computed from the objects in each state.

One frame is enough only for `clip_color`. Frames in any order are enough for `clip_moved`. The direction, the first and
last color and the number of changes need the order of the frames. `clip_story` and `clip_path` are answered with one
word per second: they teach the content and the position of each frame. One word per clip does not
(experiments/LOG.md, 002).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from llava_mini.data.toyworld.clips import LAMP, Clip
from llava_mini.data.toyworld.facts import NUMBER_WORDS
from llava_mini.data.toyworld.questions import Asked
from llava_mini.data.toyworld.scenes import SceneObject

CLIP_KINDS = (
    "clip_moved",
    "clip_move",
    "clip_first",
    "clip_last",
    "clip_changes",
    "clip_color",
    "clip_story",
    "clip_path",
)


def clip_questions(rng: np.random.Generator, clip: Clip) -> list[Asked]:
    """Return one question of every kind, in random order."""
    states = [{thing.kind: thing for thing in state} for state in clip.states]
    first, last = states[0], states[-1]
    shapes = [kind for kind in first if kind != LAMP]
    moved = next(kind for kind in shapes if last[kind].center != first[kind].center)
    known = _any(rng, [kind for kind in shapes if kind != moved])
    followed = _any(rng, shapes)
    lamp = [state[LAMP].color for state in states]
    changes = sum(before != now for before, now in pairwise(lamp))
    asked = [
        Asked("clip_moved", "what moved", moved),
        Asked("clip_move", "where did it move", _direction(first[moved], last[moved])),
        Asked("clip_first", "what color appeared first", lamp[0]),
        Asked("clip_last", "what color appeared last", lamp[-1]),
        Asked("clip_changes", "how many changes", NUMBER_WORDS[changes]),
        Asked("clip_color", f"what color is the {known}", first[known].color),
        Asked("clip_story", f"what color is the {LAMP}", " ".join(lamp)),
        Asked("clip_path", f"where is the {followed}", " ".join(state[followed].quarter for state in states)),
    ]
    return [asked[i] for i in rng.permutation(len(asked))]


def _direction(start: SceneObject, end: SceneObject) -> str:
    right, down = end.x - start.x, end.y - start.y
    if abs(right) > abs(down):
        return "east" if right > 0 else "west"
    return "south" if down > 0 else "north"


def _any(rng: np.random.Generator, names: list[str]) -> str:
    return names[int(rng.integers(len(names)))]
