"""Questions of the toy world and their answers, in lower-case words: about scenes, boards, clips and texts.

Facts about a scene are asked, or stated as captions. Stage 1 learns from captions what the words mean in an image. No
caption has the form of a question, so the model learns to answer in stage 2 only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from llava_mini.data.toyworld.clips import LAMP, Clip
from llava_mini.data.toyworld.drawing import COLOR_NAMES, SHAPES
from llava_mini.data.toyworld.scenes import Scene, SceneObject

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Number of one-word questions about a board: few in training, where each costs time, and every kind in evaluation.
TRAINED, EVALUATED = 2, 6
_HARD_NEGATIVE = 0.7
_WORDS = {  # question and caption of each kind of fact
    "color": ("what color is the {shape}", "the {shape} is {answer}"),
    "shape": ("what shape is the {color} object", "the {color} object is a {answer}"),
    "digit": ("what is in the {color} box", "the {color} box holds {answer}"),
    "count": ("how many {shape} objects", "{answer} {shape} objects"),
    "exist": ("is there a {color} {shape}", "{article} {color} {shape} is here"),
    "where": ("where is the {shape}", "the {shape} is {answer}"),
}
_TEXTS_PER_KIND = 2
_CORNERS = ("northeast", "northwest", "southeast", "southwest")
_NUM_THINGS = (2, 3)
_MOST_COUNTED, _NUM_TOLD = 3, 4


@dataclass(frozen=True)
class Asked:
    """A question, its kind and its answer, in words of the tokenizer."""

    kind: str
    question: str
    answer: str


@dataclass(frozen=True)
class Fact:
    """A fact of `kind` about what `color` and `shape` name (empty if not part of the name), and its `answer`."""

    kind: str
    color: str
    shape: str
    answer: str


def question(fact: Fact) -> str:
    """Return the question whose answer is `fact.answer`."""
    return _WORDS[fact.kind][0].format(**vars(fact))


def caption(fact: Fact) -> str:
    """Return `fact` as a statement."""
    return _WORDS[fact.kind][1].format(**vars(fact), article="a" if fact.answer == "yes" else "no")


def scene_facts(rng: np.random.Generator, scene: Scene, per_kind: int = 2) -> list[Fact]:
    """Return different facts of six kinds with one-word answers, in random order.

    Color and position facts name a shape that occurs once. Shape facts name a color that occurs once among the shapes.
    Half of the existence facts are false. Most of those are hard: both the color and the shape are in the scene, but
    not on one object.

    There are `per_kind` (1 or 2) of each kind; a board may have fewer of some kinds.
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
        shape = _any(rng, [shape for shape in left if left[shape] == value])
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


def board_questions(rng: np.random.Generator, board: Scene, one_word: int) -> list[Asked]:
    """Return all dense questions and some of the six one-word kinds, in random order.

    A dense answer names everything in reading order, and its question is a single word. Pre-fused text can carry one
    word of an answer well and dozens badly, so with dense answers vision tokens matter (experiments/007-compression).

    There are at most `one_word` one-word questions, each of a different kind; kinds without an answer on this board are
    left out.
    """
    facts = scene_facts(rng, board, per_kind=1)[:one_word]
    asked = [*dense_questions(board), *(Asked(fact.kind, question(fact), fact.answer) for fact in facts)]
    return [asked[i] for i in rng.permutation(len(asked))]


def dense_questions(board: Scene) -> list[Asked]:
    """Return one question of each dense kind.

    Example:
        box      -> three seven zero one one nine four            (the digits, 7 words)
        color    -> red red blue white green ...                  (the colors, 16 words)
        objects  -> red cross red three blue ring white star ...  (color and shape or digit of each, 32 words)
    """
    things = board.objects
    return [
        Asked("digits", "box", " ".join(_name(thing) for thing in board.boxes)),
        Asked("colors", "color", " ".join(thing.color for thing in things)),
        Asked("objects", "objects", " ".join(f"{thing.color} {_name(thing)}" for thing in things)),
    ]


def _name(thing: SceneObject) -> str:
    return thing.kind if thing.digit is None else NUMBER_WORDS[thing.digit]


def clip_questions(rng: np.random.Generator, clip: Clip) -> list[Asked]:
    """Return one question of every kind, in random order, answered from the objects in each state.

    One frame is enough only for `clip_color`. Frames in any order are enough for `clip_moved`. The direction, the first
    and last color and the number of changes need the order of the frames. `clip_story` and `clip_path` are answered
    with one word per second: they teach the content and the position of each frame. One word per clip does not
    (experiments/LOG.md, 002).
    """
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


def text_questions(rng: np.random.Generator) -> list[Asked]:
    """Return two questions of every kind in random order, each with the statements that it asks about.

        the circle is red the star is blue the ring is green what color is the star -> blue

    Each turn contains its own statements, so turns can be read alone. Kinds and questions are those of scenes, as far
    as words can state what they ask for. Within a kind, no one-word answer is more frequent than another, and no answer
    follows from the length of a text. The answer of `text_copy` repeats all statements: it teaches the model to find a
    word by the word before it. Without this, the model did not look up names (experiments/LOG.md, 002).
    """
    makers: dict[str, Callable[[np.random.Generator], tuple[str, str]]] = {
        "text_color": _color,
        "text_shape": _shape,
        "text_where": _where,
        "text_count": _count,
        "text_exist": _exist,
        "text_copy": _copy,
    }
    kinds = [*makers] * _TEXTS_PER_KIND
    return [Asked(kinds[i], *makers[kinds[i]](rng)) for i in rng.permutation(len(kinds))]


def _color(rng: np.random.Generator) -> tuple[str, str]:
    shapes, colors, chosen = _pairs(rng, COLOR_NAMES)
    statement = " ".join(f"the {shape} is {color}" for shape, color in zip(shapes, colors, strict=True))
    return f"{statement} what color is the {shapes[chosen]}", colors[chosen]


def _shape(rng: np.random.Generator) -> tuple[str, str]:
    shapes, colors, chosen = _pairs(rng, COLOR_NAMES)
    statement = " ".join(f"the {color} object is a {shape}" for shape, color in zip(shapes, colors, strict=True))
    return f"{statement} what shape is the {colors[chosen]} object", shapes[chosen]


def _where(rng: np.random.Generator) -> tuple[str, str]:
    shapes, corners, chosen = _pairs(rng, _CORNERS)
    statement = " ".join(f"the {shape} is {corner}" for shape, corner in zip(shapes, corners, strict=True))
    return f"{statement} where is the {shapes[chosen]}", corners[chosen]


def _count(rng: np.random.Generator) -> tuple[str, str]:
    """Return a question about how many things (0 to 3) have a color; how many things the text lists is no clue."""
    count, total = int(rng.integers(_MOST_COUNTED + 1)), int(rng.integers(_MOST_COUNTED, _NUM_TOLD + 1))
    color, *rest = (COLOR_NAMES[i] for i in rng.permutation(len(COLOR_NAMES)))
    colors = [color] * count + [_any(rng, rest) for _ in range(total - count)]
    statement = " ".join(f"{colors[i]} {_any(rng, SHAPES)}" for i in rng.permutation(len(colors)))
    return f"{statement} how many {color} objects", NUMBER_WORDS[count]


def _exist(rng: np.random.Generator) -> tuple[str, str]:
    """Return a question whether a thing of one color is in the text, and the answer."""
    shapes, colors, chosen = _pairs(rng, COLOR_NAMES)
    statement = " ".join(f"a {color} {shape} is here" for shape, color in zip(shapes, colors, strict=True))
    if rng.random() < 0.5:
        return f"{statement} is there a {colors[chosen]} object", "yes"
    absent = [color for color in COLOR_NAMES if color not in colors]
    return f"{statement} is there a {_any(rng, absent)} object", "no"


def _copy(rng: np.random.Generator) -> tuple[str, str]:
    """Return the statements of another kind and a question that is answered by repeating them word for word."""
    statement, _, _ = (_color, _shape, _where)[int(rng.integers(3))](rng)[0].rpartition(" wh")
    return f"{statement} what is here", statement


def _pairs(rng: np.random.Generator, names: tuple[str, ...]) -> tuple[list[str], list[str], int]:
    """Return different shapes, as many different `names`, and a random index into both."""
    count = int(rng.integers(_NUM_THINGS[0], _NUM_THINGS[1] + 1))
    shapes = [SHAPES[i] for i in rng.permutation(len(SHAPES))[:count]]
    return shapes, [names[i] for i in rng.permutation(len(names))[:count]], int(rng.integers(count))


def _any(rng: np.random.Generator, names: Sequence[str]) -> str:
    return names[int(rng.integers(len(names)))]
