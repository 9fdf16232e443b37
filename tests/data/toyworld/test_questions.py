"""A question is answered by its own words and the scene; a caption is true of its scene and asks nothing."""

import re
from collections.abc import Callable

from llava_mini.data.toyworld.questions import caption, question, scene_facts
from llava_mini.data.toyworld.scenes import scene_at, stream_rng

QUESTIONS = {
    "color": r"what color is the (?P<shape>\w+)",
    "shape": r"what shape is the (?P<color>\w+) object",
    "digit": r"what is in the (?P<color>\w+) box",
    "count": r"how many (?P<shape>\w+) objects",
    "exist": r"is there a (?P<color>\w+) (?P<shape>\w+)",
    "where": r"where is the (?P<shape>\w+)",
}
CAPTIONS = {
    "digit": r"the (?P<color>\w+) box holds (?P<answer>\w+)",
    "shape": r"the (?P<color>\w+) object is a (?P<answer>\w+)",
    "where": r"the (?P<shape>\w+) is (?P<answer>(north|south)(west|east))",
    "color": r"the (?P<shape>\w+) is (?P<answer>\w+)",
    "exist": r"(?P<answer>a|no) (?P<color>\w+) (?P<shape>\w+) is here",
    "count": r"(?P<answer>\w+) (?P<shape>\w+) objects",
}


def test_questions_are_answered_from_their_words(answers: Callable[..., set[str]]) -> None:
    for index, scene in enumerate([scene_at("instruct-val", 1, index) for index in range(60)]):
        for fact in scene_facts(stream_rng("instruct-val", 1, index, 1), scene):
            read = [(kind, match) for kind, form in QUESTIONS.items() if (match := re.fullmatch(form, question(fact)))]
            assert len(read) == 1, question(fact)
            kind, words = read[0]
            assert kind == fact.kind
            assert answers(scene, kind, **words.groupdict()) == {fact.answer}
            assert len(fact.answer.split()) == 1


def test_captions_are_true_of_their_scene(answers: Callable[..., set[str]]) -> None:
    kinds = set()
    for index, scene in enumerate([scene_at("caption-train", 1, index) for index in range(60)]):
        for fact in scene_facts(stream_rng("caption-train", 1, index, 1), scene):
            text = caption(fact)
            kind, match = next((kind, found) for kind, form in CAPTIONS.items() if (found := re.fullmatch(form, text)))
            words = {name: match.groupdict().get(name) or "" for name in ("color", "shape")}
            said = match["answer"].replace("a", "yes") if match["answer"] == "a" else match["answer"]
            assert answers(scene, kind, **words) == {said}, text
            assert kind == fact.kind
            assert not re.search(r"\b(what|where|how|many|there|yes)\b|\?", text)
            kinds.add(kind)
    assert kinds == set(CAPTIONS)
