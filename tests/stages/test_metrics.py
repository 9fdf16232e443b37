"""Scores from logits: spans of answers, exact match, word accuracy and nats per word, and what is kept of them."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tests.refusals import refuses
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from llava_mini.batch import VLMBatch
from llava_mini.data.toyworld.tokenizer import SPECIAL_TOKENS, build_tokenizer
from llava_mini.stages.metrics import Answers, AnswerScore, answer_scores, answer_spans, word_marks

IGNORE = -100
RIGHT, WRONG = AnswerScore(1, 1.0, 1.0, 0.1), AnswerScore(1, 0.0, 0.0, 2.0)


def logits_for(labels: torch.Tensor, wrong_at: Sequence[tuple[int, int]] = ()) -> torch.Tensor:
    """Logits whose argmax at t is the label at t + 1, except at the named label positions."""
    logits = torch.zeros(*labels.shape, 10)
    for row in range(len(labels)):
        for t in range(1, labels.shape[1]):
            if labels[row, t] != IGNORE:
                token = int(labels[row, t])
                logits[row, t - 1, (token + 1) % 10 if (row, t) in wrong_at else token] = 1.0
    return logits


def marks_of() -> torch.Tensor:
    """5 and 6 begin words, 7 continues one, 2 ends an answer."""
    marks = torch.zeros(10, dtype=torch.uint8)
    marks[[5, 6]], marks[7] = 3, 1
    return marks


def exact(*arguments: torch.Tensor) -> list[list[float]]:
    return [[score.exact_match for score in row] for row in answer_scores(*arguments)]


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
    assert exact(logits_for(labels), labels) == [[1, 1], [1]]
    assert exact(logits_for(labels, [(0, 5)]), labels) == [[1, 0], [1]]
    assert exact(logits_for(labels, [(0, 1), (1, 2)]), labels) == [[0, 1], [0]]


def test_the_first_token_of_a_turn_follows_the_shared_prefix_and_not_the_turn_before():
    labels = torch.tensor([[IGNORE, IGNORE, 7, 2, 9, 2]])  # statements without questions, after two shared tokens
    turns = torch.tensor([[0, 0, 1, 1, 2, 2]])
    says = torch.tensor([[0, 7, 2, 9, 2, 0]])  # the most likely token after each position
    logits = torch.nn.functional.one_hot(says, 10).float()
    assert exact(logits, labels, turns) == [[1, 0]]  # after the prefix comes 7, not 9
    says[0, 1] = 9
    assert exact(torch.nn.functional.one_hot(says, 10).float(), labels, turns) == [[0, 1]]


def test_rows_without_answers_have_none():
    labels = torch.full((2, 4), IGNORE)
    assert answer_scores(torch.zeros(2, 4, 10), labels) == [[], []]


def test_words_are_right_when_all_their_tokens_are_and_the_end_belongs_to_the_last():
    marks = marks_of()
    labels = torch.tensor([[IGNORE, 5, 7, 6, 2]])
    for wrong, expected in {
        (): (1.0, 1.0),
        (2,): (0.5, 0.0),
        (3,): (0.5, 0.0),
        (4,): (0.5, 0.0),
        (1, 4): (0, 0),
    }.items():
        [[score]] = answer_scores(logits_for(labels, [(0, t) for t in wrong]), labels, None, marks)
        assert (score.word_accuracy, score.exact_match) == expected
        assert score.words == 2
    one_word = torch.tensor([[IGNORE, 7, 7, 2]])  # the first token begins a word whatever it is
    [[score]] = answer_scores(logits_for(one_word, [(0, 3)]), one_word, None, marks)
    assert (score.words, score.word_accuracy, score.exact_match) == (1, 0.0, 0.0)


def test_nats_are_of_the_answer_and_its_end_shared_by_its_words():
    marks = marks_of()
    labels = torch.tensor([[IGNORE, 5, 7, 6, 2], [IGNORE, IGNORE, 6, 2, IGNORE]])
    logits = torch.randn(2, 5, 10, generator=torch.Generator().manual_seed(0))
    log_p = torch.log_softmax(logits.double(), -1)
    first = -(log_p[0, 0, 5] + log_p[0, 1, 7] + log_p[0, 2, 6] + log_p[0, 3, 2]) / 2
    second = -(log_p[1, 1, 6] + log_p[1, 2, 2])
    found = [row[0].nll for row in answer_scores(logits, labels, None, marks)]
    assert found == pytest.approx([float(first), float(second)], abs=1e-5)


def test_every_word_of_the_toy_world_begins_with_its_token():
    tokenizer = build_tokenizer()
    marks = word_marks(tokenizer, len(tokenizer) + 3)
    assert len(marks) == len(tokenizer) + 3 and not marks[len(tokenizer) :].any()
    assert not marks[: len(SPECIAL_TOKENS)].any() and (marks[len(SPECIAL_TOKENS) : len(tokenizer)] == 3).all()


BYTE_LEVEL = ["a", ".\u010a", "\u0120", "\u0120red", "dish", "\u010a", "\u010a\u010a", "2", "</s>"]
SENTENCEPIECE = ["\u2581red", "dish", "\u2581", "<0x0A>", "\u2581a", "2", "</s>"]


@pytest.mark.parametrize(
    ("vocabulary", "answer", "right_words"),
    [
        (["red", "##dish", "blue", "</s>"], ["red", "##dish", "blue", "</s>"], [[0, 1], [2, 3]]),  # WordPiece
        (SENTENCEPIECE, ["\u2581red", "dish", "\u2581a", "</s>"], [[0, 1], [2, 3]]),
        (SENTENCEPIECE, ["\u2581red", "<0x0A>", "2", "</s>"], [[0, 1], [2, 3]]),  # "red\\n2"
        (SENTENCEPIECE, ["\u2581", "2", "<0x0A>", "\u2581a", "</s>"], [[0, 1, 2], [3, 4]]),  # "2\\n a"
        (BYTE_LEVEL, ["a", ".\u010a", "2", "dish", "</s>"], [[0, 1], [2, 3, 4]]),  # "a.\\n2dish"
        (BYTE_LEVEL, ["a", "\u0120", "\u0120red", "</s>"], [[0, 1], [2, 3]]),  # two spaces
        (BYTE_LEVEL, ["a", "\u010a\u010a", "2", "\u010a", "</s>"], [[0, 1], [2, 3, 4]]),  # a line's end is no word
    ],
)
def test_words_are_what_is_between_white_space_however_it_is_marked(
    vocabulary: list[str], answer: list[str], right_words: list[list[int]]
):
    model = models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="</s>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), eos_token="</s>", unk_token="</s>")
    marks = word_marks(tokenizer, 10)
    ids = [vocabulary.index(token) for token in answer]
    labels = torch.tensor([[IGNORE, *ids, IGNORE, *ids]])  # the second answer is scored as the first
    for places in right_words:
        for place in places:
            [scores] = answer_scores(
                logits_for(labels, [(0, 1 + place), (0, 2 + len(ids) + place)]), labels, None, marks
            )
            assert [score.words for score in scores] == [len(right_words)] * 2
            assert [score.word_accuracy for score in scores] == pytest.approx([1 - 1 / len(right_words)] * 2)


def keyed(keys: list[str], kinds: list[list[str]]) -> VLMBatch:
    empty = torch.zeros(len(keys), 1, dtype=torch.long)
    return VLMBatch(empty, empty, empty, empty[:, 0], keys=keys, kinds=kinds)


def test_answers_become_arrays_sorted_by_sample_and_turn():
    answers = Answers()
    answers.add(keyed(["b", "a"], [["color", "count"], []]), [[RIGHT, WRONG], [AnswerScore(7, 0.0, 0.5, 1.5)]])
    found = answers.predictions()
    assert found.key.tolist() == ["a", "b", "b"] and found.turn.tolist() == [0, 0, 1]
    assert found.kind.tolist() == ["", "color", "count"] and found.words.tolist() == [7, 1, 1]
    assert found.exact_match.tolist() == [0, 1, 0] and found.word_accuracy.tolist() == [0.5, 1, 0]
    np.testing.assert_allclose(found.nll, [1.5, 0.1, 2.0], rtol=1e-6)
    with pytest.raises(ValueError, match="zip"):
        answers.add(keyed(["a", "b"], [[], []]), [[RIGHT]])


@pytest.mark.parametrize(("kinds", "message"), [(["color"], "1 kinds for 2 answers"), (["color"] * 3, "3 kinds for 2")])
def test_kinds_that_do_not_fit_the_answers_are_refused_and_nothing_is_kept(kinds: list[str], message: str):
    answers = Answers()
    with pytest.raises(ValueError, match=message):
        answers.add(keyed(["a", "b"], [["color"], kinds]), [[RIGHT], [RIGHT, WRONG]])
    assert answers == Answers()


def test_a_kind_that_the_config_does_not_name_is_refused():
    answers = Answers()
    answers.add(keyed(["a"], [["size"]]), [[RIGHT]])
    answers.check(["color", "size"])
    with refuses("data.kinds", "size", "color, count"):
        answers.check(["color", "count"])
