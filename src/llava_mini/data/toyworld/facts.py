"""Facts about a scene, which can be asked or stated: six kinds, each with a one-word answer.

A fact is neither a question nor a statement; `questions.py` puts it into words. Color and position facts name a shape
that occurs once. Shape facts name a color that occurs once among the shapes. Half of the existence facts are false.
Most false facts are hard: both the color and the shape are in the scene, but not on one object.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from llava_mini.data.toyworld.drawing import COLOR_NAMES, SHAPES
from llava_mini.data.toyworld.scenes import Scene

FACT_KINDS = ("color", "shape", "digit", "count", "exist", "where")
FACTS_PER_KIND = 2
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_HARD_NEGATIVE = 0.7


@dataclass(frozen=True)
class Fact:
    """A fact of `kind` about what `color` and `shape` name (empty if not part of the name), and its `answer`."""

    kind: str
    color: str
    shape: str
    answer: str


def scene_facts(rng: np.random.Generator, scene: Scene, per_kind: int = FACTS_PER_KIND) -> list[Fact]:
    """Return different facts of every kind, in random order.

    Args:
        rng: Random generator of the choice and the order.
        scene: Scene, which has at least two facts of every kind, or board, which may have fewer of some kinds.
        per_kind: Number of facts of each kind, 1 or 2.
    """
    everything = {
        "color": [Fact("color", "", thing.kind, thing.color) for thing in scene.unique_shapes],
        "shape": [Fact("shape", thing.color, "", thing.kind) for thing in scene.unique_colors],
        "digit": [Fact("digit", box.color, "", NUMBER_WORDS[box.digit or 0]) for box in scene.unique_boxes],
        "where": [Fact("where", "", thing.kind, thing.quadrant or "") for thing in scene.placed_shapes],
    }
    facts = [[found[i] for i in rng.permutation(len(found))[:per_kind]] for found in everything.values()]
    facts += [_counts(rng, scene, per_kind), _existences(rng, scene, per_kind)]
    flat = [fact for group in facts for fact in group]
    return [flat[i] for i in rng.permutation(len(flat))]


def _counts(rng: np.random.Generator, scene: Scene, count: int) -> list[Fact]:
    """Return facts about different shapes; the number is chosen before the shape, so that no number dominates."""
    numbers = Counter(thing.kind for thing in scene.shapes)
    left = {shape: numbers[shape] for shape in SHAPES}
    facts = []
    for _ in range(count):
        values = sorted(set(left.values()))
        value = values[int(rng.integers(len(values)))]
        shapes = [shape for shape in left if left[shape] == value]
        shape = shapes[int(rng.integers(len(shapes)))]
        del left[shape]
        facts.append(Fact("count", "", shape, NUMBER_WORDS[value]))
    return facts


def _existences(rng: np.random.Generator, scene: Scene, count: int) -> list[Fact]:
    """Return facts about different pairs of color and shape, true with probability one half."""
    there = sorted({(thing.color, thing.kind) for thing in scene.shapes})
    absent = [(color, shape) for color in COLOR_NAMES for shape in SHAPES if (color, shape) not in there]
    colors, shapes = {color for color, _ in there}, {shape for _, shape in there}
    hard = [(color, shape) for color, shape in absent if color in colors and shape in shapes]
    facts: list[Fact] = []
    while len(facts) < count:
        if rng.random() < 0.5:
            pool, answer = there, "yes"
        else:
            pool, answer = (hard if hard and rng.random() < _HARD_NEGATIVE else absent), "no"
        color, shape = pool[int(rng.integers(len(pool)))]
        fact = Fact("exist", color, shape, answer)
        if fact not in facts:
            facts.append(fact)
    return facts
