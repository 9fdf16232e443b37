"""A reader who sees only the caption's words finds them true of the scene, and never a question."""

import re
from collections.abc import Callable

from llava_mini.data.toyworld.captions import caption
from llava_mini.data.toyworld.facts import scene_facts
from llava_mini.data.toyworld.scenes import scene_at, stream_rng

FORMS = {
    "digit": r"the (?P<color>\w+) box holds (?P<answer>\w+)",
    "shape": r"the (?P<color>\w+) object is a (?P<answer>\w+)",
    "where": r"the (?P<shape>\w+) is (?P<answer>(north|south)(west|east))",
    "color": r"the (?P<shape>\w+) is (?P<answer>\w+)",
    "exist": r"(?P<answer>a|no) (?P<color>\w+) (?P<shape>\w+) is here",
    "count": r"(?P<answer>\w+) (?P<shape>\w+) objects",
}


def test_captions_are_true_of_their_scene(answers: Callable[..., set[str]]) -> None:
    kinds = set()
    for index, scene in enumerate([scene_at("caption-train", 1, index) for index in range(60)]):
        for fact in scene_facts(stream_rng("caption-train", 1, index, 1), scene):
            text = caption(fact)
            kind, match = next((kind, found) for kind, form in FORMS.items() if (found := re.fullmatch(form, text)))
            words = {name: match.groupdict().get(name) or "" for name in ("color", "shape")}
            said = match["answer"].replace("a", "yes") if match["answer"] == "a" else match["answer"]
            assert answers(scene, kind, **words) == {said}, text
            assert kind == fact.kind
            assert not re.search(r"\b(what|where|how|many|there|yes)\b|\?", text)
            kinds.add(kind)
    assert kinds == set(FORMS)
