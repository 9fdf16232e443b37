"""Facts of the toy world in words, lower-case ones only: as questions with their answers, and as captions.

Stage 1 learns from captions what the words mean in an image. No caption has the form of a question, so the model learns
to answer in stage 2 only.
"""

from __future__ import annotations

from dataclasses import dataclass

from llava_mini.data.toyworld.facts import Fact

_WORDS = {  # question and caption of each kind
    "color": ("what color is the {shape}", "the {shape} is {answer}"),
    "shape": ("what shape is the {color} object", "the {color} object is a {answer}"),
    "digit": ("what is in the {color} box", "the {color} box holds {answer}"),
    "count": ("how many {shape} objects", "{answer} {shape} objects"),
    "exist": ("is there a {color} {shape}", "{article} {color} {shape} is here"),
    "where": ("where is the {shape}", "the {shape} is {answer}"),
}


@dataclass(frozen=True)
class Asked:
    """A question, its kind and its answer, in words of the tokenizer."""

    kind: str
    question: str
    answer: str


def question(fact: Fact) -> str:
    """Return the question whose answer is `fact.answer`."""
    return _WORDS[fact.kind][0].format(**vars(fact))


def caption(fact: Fact) -> str:
    """Return `fact` as a statement."""
    return _WORDS[fact.kind][1].format(**vars(fact), article="a" if fact.answer == "yes" else "no")
