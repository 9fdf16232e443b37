"""Captions of the toy world: the facts that questions ask for, as statements.

Stage 1 learns from them what the words mean in an image. No caption has the form of a question, so the model learns to
answer in stage 2 only.
"""

from __future__ import annotations

from llava_mini.data.toyworld.facts import Fact


def caption(fact: Fact) -> str:
    """Return `fact` as a statement."""
    return {
        "color": f"the {fact.shape} is {fact.answer}",
        "shape": f"the {fact.color} object is a {fact.answer}",
        "digit": f"the {fact.color} box holds {fact.answer}",
        "count": f"{fact.answer} {fact.shape} objects",
        "exist": f"{'a' if fact.answer == 'yes' else 'no'} {fact.color} {fact.shape} is here",
        "where": f"the {fact.shape} is {fact.answer}",
    }[fact.kind]
