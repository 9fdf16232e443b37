"""Questions about boards: three dense questions, answered with 7, 16 or 32 words, and some with one-word answers.

A dense answer names everything in reading order, and its question is a single word. Pre-fused text can carry one word
of an answer well and dozens badly, so with dense answers vision tokens matter (experiments/007-compression).
"""

from __future__ import annotations

import numpy as np

from llava_mini.data.toyworld.facts import NUMBER_WORDS, scene_facts
from llava_mini.data.toyworld.questions import Asked, question
from llava_mini.data.toyworld.scenes import Scene, SceneObject

DENSE_KINDS = ("digits", "colors", "objects")
# Number of one-word questions about a board: few in training, where each costs time, and every kind in evaluation.
TRAINED, EVALUATED = 2, 6


def board_questions(rng: np.random.Generator, board: Scene, one_word: int) -> list[Asked]:
    """Return all dense questions and some of the six one-word kinds, in random order.

    Args:
        rng: Random generator of the choice and the order.
        board: Board that the questions are about.
        one_word: Maximum number of one-word questions, each of a different kind; kinds without an answer on this board
            are left out.
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
