"""Scores of answers, computed from teacher-forced logits.

Greedy decoding reproduces an answer word for word exactly if, given the answer's own beginning, every next token of it
(including its end token) is the most likely one. So one forward pass scores all turns of a sample as `generate` would.
Word accuracy and nats per word come from the same pass: each word is scored given the right words before it.

Shapes: B samples, T tokens, S supervised tokens of the batch, V entries of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llava_mini.batch import IGNORE, VLMBatch
from llava_mini.errors import refused
from llava_mini.models.loss import predictors
from llava_mini.predictions import Predictions

# SentencePiece's and byte-level BPE's marks of white space, and white space itself.
_WHITE = frozenset("\u2581\u0120\u010a\u0109\u010d \n\t\r")
_WHITE_BYTES = ("<0x09>", "<0x0A>", "<0x0D>", "<0x20>")  # SentencePiece's byte tokens for what its vocabulary lacks
_CONTINUES = "##"  # WordPiece's mark of a token that continues a word
_TEXT, _BEFORE, _BEHIND = 1, 2, 4  # flags that `word_marks` adds up


class AnswerScore(NamedTuple):
    """Scores of one answer; see `llava_mini.predictions.Predictions` for their definition."""

    words: int
    exact_match: float
    word_accuracy: float
    nll: float


def word_marks(tokenizer: PreTrainedTokenizerBase, size: int) -> Tensor:
    """Mark where words begin and end in the entries of the vocabulary: [V] uint8, the sum of an entry's flags.

    1: it contains text; 2: white space is before its text; 4: white space is after it. White space alone is 2 + 4.
    If the tokenizer marks no white space, it is before every token that is not marked as a continuation. Special tokens
    are 0, so the end of an answer belongs to its last word.

    Args:
        tokenizer: Tokenizer of the model.
        size: V, the width of the logits; at least the length of the tokenizer.
    """
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    texts = [" " if token in _WHITE_BYTES else token or "" for token in tokens]
    marked = any(text[:1] in _WHITE for text in texts)
    marks_V = torch.zeros(max(size, len(texts)), dtype=torch.uint8)
    marks_V[: len(texts)] = torch.tensor([_marks(text, marked) for text in texts], dtype=torch.uint8)
    marks_V[tokenizer.all_special_ids] = 0
    return marks_V


def _marks(text: str, marked: bool) -> int:
    """Flags of a token; `marked` says whether its tokenizer marks white space."""
    if not text:
        return 0
    if not marked:
        return _TEXT + _BEFORE * (not text.startswith(_CONTINUES))
    return _TEXT * (not _WHITE.issuperset(text)) + _BEFORE * (text[0] in _WHITE) + _BEHIND * (text[-1] in _WHITE)


def answer_spans(labels_BT: Tensor, turn_ids_BT: Tensor | None = None) -> Tensor:
    """Number the answers of every row: [B, T] int64, 0 outside answers, i for tokens of the i-th answer.

    An answer is a sequence of adjacent supervised labels; a new turn also ends it.

    Example:
        labels  -100 7 2 -100 9 2
        spans      0 1 1    0 2 2
    """
    supervised = labels_BT != IGNORE
    previous = torch.nn.functional.pad(supervised, (1, 0))[:, :-1]
    starts = supervised & ~previous
    if turn_ids_BT is not None:
        changed = torch.nn.functional.pad(turn_ids_BT[:, 1:] != turn_ids_BT[:, :-1], (1, 0))
        starts = supervised & (~previous | changed)
    return torch.where(supervised, starts.long().cumsum(1), 0)


def answer_scores(
    logits_BTV: Tensor, labels_BT: Tensor, turn_ids_BT: Tensor | None = None, marks_V: Tensor | None = None
) -> list[list[AnswerScore]]:
    """Return for every row the scores of each of its answers, in order.

    Args:
        logits_BTV: Logits, [B, T, V].
        labels_BT: Labels, [B, T] int64; -100 outside answers.
        turn_ids_BT: Turn of each token, [B, T] int64 or None.
        marks_V: Word marks, [V] uint8, see `word_marks`; None: every token is a separate word, also an answer's end.
    """
    predictor_BT = predictors(torch.zeros_like(labels_BT) if turn_ids_BT is None else turn_ids_BT)
    spans_BT = answer_spans(labels_BT, turn_ids_BT).masked_fill(predictor_BT < 0, 0)
    row_S, column_S = spans_BT.nonzero(as_tuple=True)
    labels_S, span_S = labels_BT[row_S, column_S], spans_BT[row_S, column_S]
    logits_SV = logits_BTV[row_S, predictor_BT[row_S, column_S]].float()
    nats_S = torch.nn.functional.cross_entropy(logits_SV, labels_S, reduction="none").double()
    right_S = logits_SV.argmax(-1) == labels_S
    answer_S = _numbered(_changes(row_S) | _changes(span_S))
    marks_S = None if marks_V is None else marks_V.to(labels_S.device)[labels_S]
    begins_S = torch.ones_like(right_S) if marks_S is None else _word_begins(marks_S, answer_S)
    word_S = _numbered(begins_S)
    wrong_W = nats_S.new_zeros(_count(word_S)).scatter_add(0, word_S, (~right_S).double())
    answer_W = answer_S[begins_S]
    answers = _count(answer_S)
    words_I = nats_S.new_zeros(answers).scatter_add(0, answer_W, torch.ones_like(wrong_W))
    right_I = nats_S.new_zeros(answers).scatter_add(0, answer_W, (wrong_W == 0).double())
    nats_I = nats_S.new_zeros(answers).scatter_add(0, answer_S, nats_S)
    scores: list[list[AnswerScore]] = [[] for _ in range(len(labels_BT))]
    rows = row_S[_changes(answer_S)].tolist()
    for row, words, right, nats in zip(rows, words_I.tolist(), right_I.tolist(), nats_I.tolist(), strict=True):
        scores[row].append(AnswerScore(int(words), float(right == words), right / words, nats / words))
    return scores


def _word_begins(marks_S: Tensor, answer_S: Tensor) -> Tensor:
    """Whether each token is the first of a word, [S] bool; a word is the text between white space.

    The first token of an answer always begins a word. White space alone belongs to the word before it, so a newline
    after an answer is not a word. `marks_S` are the tokens' `word_marks`, `answer_S` numbers their answers.
    """
    first_S, text_S = _changes(answer_S), (marks_S & _TEXT) > 0
    white_S = (marks_S & _BEFORE) > 0
    white_S[1:] |= (marks_S[:-1] & _BEHIND) > 0
    texts_S = text_S.long().cumsum(0) - text_S.long()  # how many tokens with text come before it
    return first_S | (text_S & white_S & (texts_S > texts_S[first_S][answer_S]))


def _changes(values_S: Tensor) -> Tensor:
    """Whether each entry differs from the one before it, [S] bool; true for the first entry."""
    changed_S = torch.ones_like(values_S, dtype=torch.bool)
    changed_S[1:] = values_S[1:] != values_S[:-1]
    return changed_S


def _numbered(begins_S: Tensor) -> Tensor:
    """Number of the group that each entry belongs to, [S] int64 from 0; a group begins where `begins_S` is true."""
    return begins_S.long().cumsum(0) - 1


def _count(number_S: Tensor) -> int:
    return int(number_S[-1]) + 1 if len(number_S) else 0


class Answer(NamedTuple):
    """Sample key, turn from 0, and kind of a question ("" if the data names none), and the scores of its answer."""

    key: str
    turn: int
    kind: str
    words: int
    exact_match: float
    word_accuracy: float
    nll: float


@dataclass
class Answers:
    """Answers of a pass over a split: a row for each question, in the order given."""

    rows: list[Answer] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, batch: VLMBatch, scores: list[list[AnswerScore]]) -> None:
        """Append a batch's answers, as `answer_scores` scored them; a sample names a kind for each of them, or none.

        Raises:
            ValueError: if there are more or fewer rows than samples, or kinds than answers; then nothing is appended.
        """
        added = []
        for key, kinds, row in zip(batch.keys, batch.kinds, scores, strict=True):
            if kinds and len(kinds) != len(row):
                raise ValueError(
                    f"{len(kinds)} kinds for {len(row)} answers: one for each answer is needed, or none at all"
                )
            added += [Answer(key, turn, kinds[turn] if kinds else "", *score) for turn, score in enumerate(row)]
        self.rows += added

    def check(self, allowed: list[str]) -> None:
        """Refuse kinds that the config (`data.kinds`) does not name.

        Raises:
            UserError: naming the first kind that is not allowed.
        """
        if foreign := sorted({row.kind for row in self.rows} - {"", *allowed}):
            reason = f"the data has a question of kind {foreign[0]!r}"
            raise refused("data.kinds", foreign[0], reason, given="data.kinds", allowed=", ".join(allowed))

    def of_all_ranks(self) -> Answers:
        """Answers of all ranks of a distributed run, the same on each rank; this object if nothing is distributed."""
        if not torch.distributed.is_initialized():
            return self
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, self.rows)
        return Answers(list(chain.from_iterable(parts)))

    def predictions(self) -> Predictions:
        """Return the answers as arrays, sorted by sample key and turn."""
        rows = sorted(self.rows, key=lambda row: (row.key, row.turn))
        types = (str, np.int64, str, np.int64, np.float32, np.float32, np.float32)  # of the fields, in their order
        return Predictions(*(np.array([row[place] for row in rows], of) for place, of in enumerate(types)))
