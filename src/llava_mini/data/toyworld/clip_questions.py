"""Questions about clips and their one-word answers, read off what stands where in each state.

One frame answers `clip_color` alone. Frames in any order answer `clip_moved`; which way, what came first or last and
how many changes there were needs their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from llava_mini.data.toyworld.clips import Clip
from llava_mini.data.toyworld.facts import NUMBER_WORDS
from llava_mini.data.toyworld.questions import Asked
from llava_mini.data.toyworld.scenes import BOX, SceneObject

CLIP_KINDS = ("clip_moved", "clip_move", "clip_first", "clip_last", "clip_changes", "clip_color")

_State = Mapping[str, SceneObject]  # by kind, which no two objects of a clip share


def clip_questions(rng: np.random.Generator, clip: Clip) -> list[Asked]:
    """One question of every kind in random order."""
    states = [{thing.kind: thing for thing in state} for state in clip.states]
    first, last = states[0], states[-1]
    moved = next(kind for kind, thing in first.items() if last[kind].center != thing.center)
    still = [kind for kind in first if kind not in (BOX, moved)]
    known = still[int(rng.integers(len(still)))]
    arrivals = _arrivals(states)
    asked = [
        Asked("clip_moved", "what moved", moved),
        Asked("clip_move", "where did it move", _direction(first[moved], last[moved])),
        Asked("clip_first", "what color appeared first", arrivals[0].color),
        Asked("clip_last", "what color appeared last", arrivals[-1].color),
        Asked("clip_changes", "how many changes", NUMBER_WORDS[_changes(states)]),
        Asked("clip_color", f"what color is the {known}", first[known].color),
    ]
    return [asked[i] for i in rng.permutation(len(asked))]


def _direction(start: SceneObject, end: SceneObject) -> str:
    right, down = end.x - start.x, end.y - start.y
    if abs(right) > abs(down):
        return "east" if right > 0 else "west"
    return "south" if down > 0 else "north"


def _arrivals(states: Sequence[_State]) -> list[SceneObject]:
    """What was not there in the state before, in the order of time."""
    return [thing for before, now in pairwise(states) for kind, thing in now.items() if kind not in before]


def _changes(states: Sequence[_State]) -> int:
    """How often a thing has another colour than in the state before."""
    return sum(
        thing.color != before[kind].color
        for before, now in pairwise(states)
        for kind, thing in now.items()
        if kind in before
    )
