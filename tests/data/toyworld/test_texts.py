"""Texts hold their answers, one for each question, and length or habit does not give them away."""

import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from tests.data.toyworld.kinds import TEXT_KINDS

from llava_mini.data.toyworld.questions import Asked, text_questions
from llava_mini.data.toyworld.scenes import stream_rng
from llava_mini.data.toyworld.tokenizer import VOCABULARY

COUNT = 400
NUMBERS = ["zero", "one", "two", "three"]


@pytest.fixture(scope="module")
def told() -> list[Asked]:
    return [each for i in range(COUNT) for each in text_questions(stream_rng("text-train", 4, i, 1))]


def second_reading(text: str, kind: str) -> set[str]:
    """Every answer that the words of `text` allow."""
    if kind in ("text_color", "text_where"):
        shape = text.split()[-1]
        return set(re.findall(rf"the {shape} is (\w+)(?= the| what| where)", text))
    if kind == "text_shape":
        color = text.split()[-2]
        return set(re.findall(rf"the {color} object is a (\w+)", text))
    if kind == "text_count":
        told, color = re.fullmatch(r"(.*) how many (\w+) objects", text).groups()
        return {NUMBERS[told.split().count(color)]}
    if kind == "text_copy":
        return {text.removesuffix(" what is here")}
    told, asked = text.split(" is there a ")
    return {"yes" if asked.split()[0] in told.split() else "no"}


def test_every_answer_is_the_only_one(told: list[Asked]) -> None:
    for each in told:
        assert second_reading(each.question, each.kind) == {each.answer}, each


def test_a_text_has_two_questions_of_every_kind_in_known_words() -> None:
    for i in range(50):
        asked = text_questions(stream_rng("text-val", 0, i, 1))
        assert Counter(each.kind for each in asked) == dict.fromkeys(TEXT_KINDS, 2)
        assert {word for each in asked for word in (*each.question.split(), *each.answer.split())} <= set(VOCABULARY)


def test_answers_are_balanced_and_length_does_not_tell_them(told: list[Asked]) -> None:
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    by_length: defaultdict[tuple[str, int], Counter[str]] = defaultdict(Counter)
    for each in (each for each in told if each.kind != "text_copy"):  # whose answer is a text
        counts[each.kind][each.answer] += 1
        by_length[each.kind, len(each.question.split())][each.answer] += 1
    for kind, counter in counts.items():
        assert max(counter.values()) < 1.25 * counter.total() / len(counter), kind
        lengths = [counter for (of, _), counter in by_length.items() if of == kind]
        guessed = sum(max(counter.values()) for counter in lengths) / counts[kind].total()
        assert guessed < 1.3 / len(counter), (kind, guessed)


def test_a_text_is_a_pure_function_of_its_place() -> None:
    one = text_questions(stream_rng("text-test", 1, 3, 1))
    assert text_questions(stream_rng("text-test", 1, 3, 1)) == one
    assert all(text_questions(stream_rng(*place, 1)) != one for place in [("text-test", 1, 4), ("text-val", 1, 3)])


def test_the_asked_place_is_as_likely_first_as_last(told: list[Asked]) -> None:
    """Of two things told it is the last one in half of the texts, of three in a third."""
    last = [
        each.question.split(" what ")[0].endswith(f"is {each.answer}") for each in told if each.kind == "text_color"
    ]
    assert 0.35 < np.mean(last) < 0.5
