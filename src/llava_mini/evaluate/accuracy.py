"""Accuracy of a model on a split: which answers are right, by question, kept so that runs can be compared in pairs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from llava_mini.batch import VLMBatch
from llava_mini.evaluate.mode import evaluation_mode
from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.predictions import Predictions
from llava_mini.stages.metrics import KindAccuracy, check_kinds, correct_answers


@dataclass
class Answers:
    """One row a question, as they are given.

    Attributes:
        key: Sample keys.
        turn: Number of the turn in its sample, from 0.
        kind: Kind of question, "" where the data names none.
        correct: Whether the greedy answer is right, word for word.
    """

    key: list[str] = field(default_factory=list)
    turn: list[int] = field(default_factory=list)
    kind: list[str] = field(default_factory=list)
    correct: list[bool] = field(default_factory=list)

    def add(self, batch: VLMBatch, correct: list[list[bool]]) -> None:
        """Append the answers of a batch.

        Raises:
            ValueError: for another number of rows than samples, or of kinds than answers; nothing is appended then.
        """
        for kinds, row in zip(batch.kinds, correct, strict=True):
            check_kinds(kinds, row)
        for key, kinds, row in zip(batch.keys, batch.kinds, correct, strict=True):
            for turn, is_right in enumerate(row):
                self.key.append(key)
                self.turn.append(turn)
                self.kind.append(kinds[turn] if kinds else "")
                self.correct.append(is_right)

    def accuracy(self) -> float:
        """Share of right answers; NaN when there is none."""
        return float(np.mean(self.correct)) if self.correct else float("nan")

    def accuracy_by_kind(self) -> dict[str, float]:
        """The same for every kind that occurs."""
        metric = KindAccuracy(sorted(set(self.kind) - {""}))
        metric.update([[is_right] for is_right in self.correct], [[kind] if kind else [] for kind in self.kind])
        return {name.split("/", 1)[1]: share for name, share in metric.compute().items() if "/" in name}

    def save(self, path: Path) -> None:
        """Write them as `Predictions`."""
        Predictions(
            key=np.array(self.key, dtype=str),
            turn=np.array(self.turn, dtype=np.int64),
            kind=np.array(self.kind, dtype=str),
            correct=np.array(self.correct, dtype=bool),
        ).save(path)


@torch.inference_mode()
def evaluate(model: LlavaMiniForConditionalGeneration, batches: Iterable[VLMBatch]) -> Answers:
    """Score every answered turn; see `llava_mini.stages.metrics` on why one forward pass does."""
    answers = Answers()
    with evaluation_mode(model):
        for batch in batches:
            batch = batch.to(model.device)
            logits = model(**batch.model_inputs()).logits
            answers.add(batch, correct_answers(logits, batch.labels, batch.turn_ids))
    return answers
