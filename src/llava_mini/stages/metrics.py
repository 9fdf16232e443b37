"""Exact match of answers, read from teacher-forced logits.

Greedy decoding reproduces an answer word for word exactly when, given the answer's own beginning, every next token of
it (its end token included) is the most likely one. So one forward pass scores all turns of a sample as `generate`
would.

Shapes: B samples, T tokens.
"""

import torch
from torch import Tensor
from torchmetrics import Metric

from llava_mini.errors import UserError
from llava_mini.models.loss import predictors


def answer_spans(labels_BT: Tensor, turn_ids_BT: Tensor | None = None) -> Tensor:
    """Number the answers of every row: [B, T] int64, 0 outside answers, i for tokens of the i-th answer.

    An answer is a run of supervised labels; a new turn ends it too.

    Example:
        labels  -100 7 2 -100 9 2
        spans      0 1 1    0 2 2
    """
    supervised = labels_BT != -100
    previous = torch.nn.functional.pad(supervised, (1, 0))[:, :-1]
    starts = supervised & ~previous
    if turn_ids_BT is not None:
        changed = torch.nn.functional.pad(turn_ids_BT[:, 1:] != turn_ids_BT[:, :-1], (1, 0))
        starts = supervised & (~previous | changed)
    return torch.where(supervised, starts.long().cumsum(1), 0)


def correct_answers(logits_BTV: Tensor, labels_BT: Tensor, turn_ids_BT: Tensor | None = None) -> list[list[bool]]:
    """For every row, whether each answer would be decoded word for word: one bool an answer, in order."""
    predictor_BT = predictors(torch.zeros_like(labels_BT) if turn_ids_BT is None else turn_ids_BT)
    spans_BT = answer_spans(labels_BT, turn_ids_BT).masked_fill(predictor_BT < 0, 0)
    wrong_BT = (logits_BTV.argmax(-1).gather(1, predictor_BT.clamp(min=0)) != labels_BT).long()
    count = int(spans_BT.max()) + 1 if spans_BT.numel() else 1
    errors_BI = wrong_BT.new_zeros(len(spans_BT), count).scatter_add_(1, spans_BT, wrong_BT)
    number_B = spans_BT.amax(1)
    return [(errors[1 : int(n) + 1] == 0).tolist() for errors, n in zip(errors_BI, number_B, strict=True)]


def check_kinds(kinds: list[str], answers: list[bool]) -> None:
    """Refuse kinds that cannot be told apart by answer; none at all is what data without kinds has.

    Raises:
        ValueError: for another number of kinds than answers.
    """
    if kinds and len(kinds) != len(answers):
        raise ValueError(f"{len(kinds)} kinds for {len(answers)} answers: one an answer is needed, or none at all")


class KindAccuracy(Metric):
    """Share of right answers, over all and for every kind of question.

    `compute` gives {"accuracy": share, "accuracy/<kind>": share, ...}; kinds that did not occur are left out.

    Args:
        kinds: The kinds that may occur.
    """

    right: Tensor
    total: Tensor

    def __init__(self, kinds: list[str]):
        super().__init__()
        self.kinds = list(kinds)
        size = len(self.kinds) + 1
        self.add_state("right", torch.zeros(size, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(size, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, correct: list[list[bool]], kinds: list[list[str]]) -> None:
        """Count rows of answers.

        Args:
            correct: As `correct_answers` gives them.
            kinds: For every row the kind of each answer; an empty list where the data names none.

        Raises:
            UserError: for a kind that is not among those that may occur.
            ValueError: for another number of kinds than answers.
        """
        for row, names in zip(correct, kinds, strict=True):
            check_kinds(names, row)
            for i, is_right in enumerate(row):
                places = [0, self._place(names[i])] if names else [0]
                for place in places:
                    self.right[place] += int(is_right)
                    self.total[place] += 1

    def compute(self) -> dict[str, float]:
        names = ["accuracy", *(f"accuracy/{kind}" for kind in self.kinds)]
        counts = zip(names, self.right.tolist(), self.total.tolist(), strict=True)
        return {name: right / total for name, right, total in counts if total > 0}

    def _place(self, kind: str) -> int:
        if kind not in self.kinds:
            raise UserError(f"data.kinds: the data has a question of kind {kind!r}; named are {', '.join(self.kinds)}")
        return self.kinds.index(kind) + 1
