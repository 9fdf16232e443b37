"""What is measured of a trained model, and how it is saved so that transformers alone can load it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llava_mini.batch import VLMBatch
from llava_mini.data.datamodule import VLMDataModule
from llava_mini.evaluate.accuracy import evaluate
from llava_mini.evaluate.flops import prefill_flops
from llava_mini.models import LlavaMiniForConditionalGeneration, LlavaMiniProcessor


def measured(model: LlavaMiniForConditionalGeneration, datamodule: VLMDataModule, run_dir: Path) -> dict[str, Any]:
    """Accuracy on validation and (once) test, saved with every answer; tokens and FLOPs of one question."""
    accuracy, by_kind = {}, {}
    for split, loader in (("val", datamodule.val_dataloader()), ("test", datamodule.test_dataloader())):
        predictions = evaluate(model, loader)
        predictions.save(run_dir / f"predictions_{split}.npz")
        accuracy[split], by_kind[split] = predictions.accuracy(), predictions.accuracy_by_kind()
    question = one_question(
        next(batch for batch in datamodule.val_dataloader() if len(batch)), model.config.vision_config.image_size
    )
    placeholders = int((question.input_ids == model.config.image_token_id).sum())
    return {
        "accuracy": accuracy,
        "accuracy_by_kind": by_kind,
        "tokens": placeholders // max(int(question.num_frames), 1),
        "prefill_flops": prefill_flops(model, question.to(model.device)),
    }


def one_question(batch: VLMBatch, image_size: int) -> VLMBatch:
    """The first sample's first question, as at inference: no answer, no further turns.

    Its frames are black pictures with the views of the batch's, because a batch may hold features in place of pixels.
    """
    seen = batch.pixel_values if batch.image_features is None else batch.image_features
    frames = int(batch.num_frames[0])
    pixel_values = None if seen is None else torch.zeros(frames, seen.shape[1], 3, image_size, image_size)
    unanswered = batch.labels[0] == -100
    first = batch.turn_ids[0] <= 1 if batch.turn_ids is not None else (~unanswered).cumsum(0) == 0
    kept = unanswered & first & batch.attention_mask[0].bool()
    ids = batch.input_ids[0][kept][None]
    return replace(
        batch,
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        labels=torch.full_like(ids, -100),
        num_frames=batch.num_frames[:1],
        pixel_values=pixel_values,
        image_features=None,
        num_views=None if batch.num_views is None else batch.num_views[:frames],
        turn_ids=None,
    )


def save_model(model: LlavaMiniForConditionalGeneration, processor: LlavaMiniProcessor, folder: Path) -> None:
    """Write model and processor in transformers' format."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
