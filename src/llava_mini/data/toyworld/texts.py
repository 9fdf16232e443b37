"""Text-only samples of the toy world: a few statements, and a question about one of them.

    the circle is red the star is blue the ring is green what color is the star -> blue

Each turn contains its own statements, so turns can be read alone. Kinds and questions are those of scenes, as far as
words can state what they ask for. Within a kind, no one-word answer is more frequent than another, and no answer
follows from the length of a text. The answer of `text_copy` repeats all statements: it teaches the model to find a word
by the word before it. Without this, the model did not look up names (experiments/LOG.md, 002).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llava_mini.data.toyworld.drawing import COLOR_NAMES, SHAPES
from llava_mini.data.toyworld.facts import NUMBER_WORDS
from llava_mini.data.toyworld.questions import Asked

TEXT_KINDS = ("text_color", "text_shape", "text_where", "text_count", "text_exist", "text_copy")

_PER_KIND = 2
_CORNERS = ("northeast", "northwest", "southeast", "southwest")
_NUM_THINGS = (2, 3)
_MOST_COUNTED, _NUM_TOLD = 3, 4


def text_questions(rng: np.random.Generator) -> list[Asked]:
    """Return two questions of every kind in random order, each with the statements that it asks about."""
    makers: dict[str, Callable[[np.random.Generator], tuple[str, str]]] = {
        "text_color": _color,
        "text_shape": _shape,
        "text_where": _where,
        "text_count": _count,
        "text_exist": _exist,
        "text_copy": _copy,
    }
    kinds = [*makers] * _PER_KIND
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
    colors = [color] * count + [_any(rng, tuple(rest)) for _ in range(total - count)]
    statement = " ".join(f"{colors[i]} {_any(rng, SHAPES)}" for i in rng.permutation(len(colors)))
    return f"{statement} how many {color} objects", NUMBER_WORDS[count]


def _exist(rng: np.random.Generator) -> tuple[str, str]:
    """Return a question whether a thing of one color is in the text, and the answer."""
    shapes, colors, chosen = _pairs(rng, COLOR_NAMES)
    statement = " ".join(f"a {color} {shape} is here" for shape, color in zip(shapes, colors, strict=True))
    if rng.random() < 0.5:
        return f"{statement} is there a {colors[chosen]} object", "yes"
    absent = tuple(color for color in COLOR_NAMES if color not in colors)
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


def _any(rng: np.random.Generator, names: tuple[str, ...]) -> str:
    return names[int(rng.integers(len(names)))]
