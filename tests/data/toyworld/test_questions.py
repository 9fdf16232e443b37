"""A reader who sees only the question's words and the scene finds the same answer."""

import re
from collections.abc import Callable

from llava_mini.data.toyworld.facts import scene_facts
from llava_mini.data.toyworld.questions import question
from llava_mini.data.toyworld.scenes import scene_at, stream_rng

FORMS = {
    "color": r"what color is the (?P<shape>\w+)",
    "shape": r"what shape is the (?P<color>\w+) object",
    "digit": r"what is in the (?P<color>\w+) box",
    "count": r"how many (?P<shape>\w+) objects",
    "exist": r"is there a (?P<color>\w+) (?P<shape>\w+)",
    "where": r"where is the (?P<shape>\w+)",
}


def test_questions_are_answered_from_their_words(answers: Callable[..., set[str]]) -> None:
    for index, scene in enumerate([scene_at("instruct-val", 1, index) for index in range(60)]):
        for fact in scene_facts(stream_rng("instruct-val", 1, index, 1), scene):
            read = [(kind, match) for kind, form in FORMS.items() if (match := re.fullmatch(form, question(fact)))]
            assert len(read) == 1, question(fact)
            kind, words = read[0]
            assert kind == fact.kind
            assert answers(scene, kind, **words.groupdict()) == {fact.answer}
            assert len(fact.answer.split()) == 1
