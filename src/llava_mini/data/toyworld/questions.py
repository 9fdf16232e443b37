"""Questions of the toy world and their answers, in lower-case words only."""

from __future__ import annotations

from dataclasses import dataclass

from llava_mini.data.toyworld.facts import Fact


@dataclass(frozen=True)
class Asked:
    """A question, its kind and its answer, in words of the tokenizer."""

    kind: str
    question: str
    answer: str


def question(fact: Fact) -> str:
    """Return the question whose answer is `fact.answer`."""
    return {
        "color": f"what color is the {fact.shape}",
        "shape": f"what shape is the {fact.color} object",
        "digit": f"what is in the {fact.color} box",
        "count": f"how many {fact.shape} objects",
        "exist": f"is there a {fact.color} {fact.shape}",
        "where": f"where is the {fact.shape}",
    }[fact.kind]
