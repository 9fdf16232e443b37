"""Exact match from logits: spans of answers, agreement with `generate`, accuracy by kind."""

from collections.abc import Sequence

import pytest
import torch

from llava_mini.errors import UserError
from llava_mini.stages.metrics import KindAccuracy, answer_spans, correct_answers

IGNORE = -100


def logits_for(labels: torch.Tensor, wrong_at: Sequence[tuple[int, int]] = ()) -> torch.Tensor:
    """Logits whose argmax at t is the label at t + 1, except at the named label positions."""
    logits = torch.zeros(*labels.shape, 10)
    for row in range(len(labels)):
        for t in range(1, labels.shape[1]):
            if labels[row, t] != IGNORE:
                token = int(labels[row, t])
                logits[row, t - 1, (token + 1) % 10 if (row, t) in wrong_at else token] = 1.0
    return logits


def test_spans_number_runs_of_supervised_labels():
    labels = torch.tensor([[IGNORE, 7, 2, IGNORE, 9, 2], [IGNORE, IGNORE, 3, IGNORE, IGNORE, IGNORE]])
    assert answer_spans(labels).tolist() == [[0, 1, 1, 0, 2, 2], [0, 0, 1, 0, 0, 0]]


def test_a_new_turn_ends_an_answer_that_has_no_question_before_it():
    labels = torch.tensor([[IGNORE, 7, 2, 9, 2]])
    turns = torch.tensor([[0, 1, 1, 2, 2]])
    assert answer_spans(labels).max() == 1
    assert answer_spans(labels, turns).tolist() == [[0, 1, 1, 2, 2]]


def test_an_answer_is_right_only_when_every_token_is():
    labels = torch.tensor([[IGNORE, 7, 2, IGNORE, 9, 2], [IGNORE, 4, 2, IGNORE, IGNORE, IGNORE]])
    assert correct_answers(logits_for(labels), labels) == [[True, True], [True]]
    assert correct_answers(logits_for(labels, [(0, 5)]), labels) == [[True, False], [True]]
    assert correct_answers(logits_for(labels, [(0, 1), (1, 2)]), labels) == [[False, True], [False]]


def test_the_first_token_of_a_turn_follows_the_shared_prefix_and_not_the_turn_before():
    labels = torch.tensor([[IGNORE, IGNORE, 7, 2, 9, 2]])  # statements without questions, behind two shared tokens
    turns = torch.tensor([[0, 0, 1, 1, 2, 2]])
    says = torch.tensor([[0, 7, 2, 9, 2, 0]])  # the most likely token after each position
    logits = torch.nn.functional.one_hot(says, 10).float()
    assert correct_answers(logits, labels, turns) == [[True, False]]  # after the prefix comes 7, not 9
    says[0, 1] = 9
    assert correct_answers(torch.nn.functional.one_hot(says, 10).float(), labels, turns) == [[False, True]]


def test_rows_without_answers_have_none():
    labels = torch.full((2, 4), IGNORE)
    assert correct_answers(torch.zeros(2, 4, 10), labels) == [[], []]


def test_accuracy_by_kind():
    metric = KindAccuracy(["color", "count", "shape"])
    metric.update([[True, False], [True]], [["color", "count"], ["color"]])
    metric.update([[False]], [["color"]])
    assert metric.compute() == {
        "accuracy": 0.5,
        "accuracy/color": pytest.approx(2 / 3),
        "accuracy/count": 0.0,
    }
    metric.reset()
    metric.update([[True]], [[]])
    assert metric.compute() == {"accuracy": 1.0}
    with pytest.raises(UserError, match=r"data\.kinds: .* 'size'; named are color, count, shape"):
        metric.update([[True]], [["size"]])


@pytest.mark.parametrize(("kinds", "message"), [(["color"], "1 kinds for 2 answers"), (["color"] * 3, "3 kinds for 2")])
def test_as_many_kinds_as_answers_or_none(kinds: list[str], message: str):
    metric = KindAccuracy(["color"])
    with pytest.raises(ValueError, match=message):
        metric.update([[True, False]], [kinds])
    metric.update([[True, False]], [[]])
    assert metric.compute() == {"accuracy": 0.5}
