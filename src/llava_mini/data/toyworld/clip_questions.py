"""Questions about clips and their one-word answers, read off what stands where in each state.

One frame answers `clip_color` alone. Frames in any order answer `clip_moved`; which way, what came first or last and
how many changes there were needs their order.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from llava_mini.data.toyworld.clips import LAMP, Clip
from llava_mini.data.toyworld.facts import NUMBER_WORDS
from llava_mini.data.toyworld.questions import Asked
from llava_mini.data.toyworld.scenes import BOX, SceneObject

CLIP_KINDS = ("clip_moved", "clip_move", "clip_first", "clip_last", "clip_changes", "clip_color")


def clip_questions(rng: np.random.Generator, clip: Clip) -> list[Asked]:
    """One question of every kind in random order."""
    states = [{thing.kind: thing for thing in state} for state in clip.states]
    first, last = states[0], states[-1]
    moved = next(kind for kind, thing in first.items() if last[kind].center != thing.center)
    still = [kind for kind in first if kind not in (LAMP, moved)]
    known = still[int(rng.integers(len(still)))]
    boxes = [state[BOX].color for state in states if BOX in state]
    changes = sum(before[LAMP].color != now[LAMP].color for before, now in pairwise(states))
    asked = [
        Asked("clip_moved", "what moved", moved),
        Asked("clip_move", "where did it move", _direction(first[moved], last[moved])),
        Asked("clip_first", "what color appeared first", boxes[0]),
        Asked("clip_last", "what color appeared last", boxes[-1]),
        Asked("clip_changes", "how many changes", NUMBER_WORDS[changes]),
        Asked("clip_color", f"what color is the {known}", first[known].color),
    ]
    return [asked[i] for i in rng.permutation(len(asked))]


def _direction(start: SceneObject, end: SceneObject) -> str:
    right, down = end.x - start.x, end.y - start.y
    if abs(right) > abs(down):
        return "east" if right > 0 else "west"
    return "south" if down > 0 else "north"
