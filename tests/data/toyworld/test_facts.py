"""Facts are true, unambiguous, two of every kind, and not to be guessed without looking."""

from collections import Counter, defaultdict
from collections.abc import Callable

import numpy as np
import pytest
from tests.data.toyworld.kinds import FACT_KINDS

from llava_mini.data.toyworld.questions import Fact, question, scene_facts
from llava_mini.data.toyworld.scenes import Scene, scene_at, stream_rng

COUNT = 400

Told = list[tuple[Scene, list[Fact]]]


@pytest.fixture(scope="module")
def told() -> Told:
    stream = "instruct-train"
    return [
        (scene, scene_facts(stream_rng(stream, 5, index, 1), scene))
        for index, scene in enumerate([scene_at(stream, 5, index) for index in range(COUNT)])
    ]


def test_every_fact_is_the_only_true_answer(told: Told, answers: Callable[..., set[str]]) -> None:
    for scene, facts in told:
        for fact in facts:
            assert answers(scene, fact.kind, fact.color, fact.shape) == {fact.answer}, fact


def test_a_scene_has_two_different_facts_of_every_kind(told: Told) -> None:
    for _, facts in told:
        assert Counter(fact.kind for fact in facts) == dict.fromkeys(FACT_KINDS, 2)
        assert len({question(fact) for fact in facts}) == 12


def test_the_order_of_kinds_is_random(told: Told) -> None:
    first = Counter(facts[0].kind for _, facts in told)
    assert len(first) == 6
    assert max(first.values()) < COUNT / 3


def test_most_false_existences_are_hard(told: Told) -> None:
    absent = [(scene, fact) for scene, facts in told for fact in facts if fact.answer == "no"]
    hard = [
        any(thing.color == fact.color for thing in scene.shapes)
        and any(thing.kind == fact.shape for thing in scene.shapes)
        for scene, fact in absent
    ]
    assert 0.6 < sum(hard) / len(hard) < 0.95


def test_blind_guesses_fail(told: Told) -> None:
    """The most common answer, overall and for each wording of a question, is right in less than 60 % of any kind."""
    by_kind: defaultdict[str, Counter[str]] = defaultdict(Counter)
    by_text: defaultdict[str, Counter[str]] = defaultdict(Counter)
    known, asked = told[: COUNT // 2], told[COUNT // 2 :]
    for fact in (fact for _, facts in known for fact in facts):
        by_kind[fact.kind][fact.answer] += 1
        by_text[question(fact)][fact.answer] += 1
    right: defaultdict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for fact in (fact for _, facts in asked for fact in facts):
        guesses = (
            counter.most_common(1)[0][0]
            for counter in (by_kind[fact.kind], by_text[question(fact)] or by_kind[fact.kind])
        )
        first, second = (guess == fact.answer for guess in guesses)
        right[fact.kind].append((first, second))
    shares = {kind: np.mean(pairs, axis=0).round(3).tolist() for kind, pairs in right.items()}
    print("right without looking, by kind alone and by the question's words:", shares)
    assert set(shares) == set(FACT_KINDS)
    assert max(max(pair) for pair in shares.values()) < 0.6, shares
