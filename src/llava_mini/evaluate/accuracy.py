"""Scores of a model on a split, stored question by question so that runs can be compared in pairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from llava_mini.batch import VLMBatch
from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.stages.metrics import Answers, answer_scores


@torch.inference_mode()
def evaluate(
    model: LlavaMiniForConditionalGeneration, batches: Iterable[VLMBatch], marks_V: Tensor | None = None
) -> Answers:
    """Score every answered turn; `llava_mini.stages.metrics` says why one forward pass is enough.

    `marks_V` are the tokenizer's `word_marks`; None: every token is a word. The model keeps its modes.
    """
    answers = Answers()
    with evaluation_mode(model):
        for batch in batches:
            batch = batch.to(model.device)
            logits = model(**batch.model_inputs()).logits
            answers.add(batch, answer_scores(logits, batch.labels, batch.turn_ids, marks_V))
    return answers


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode within the block, and back in its own mode after it."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
