"""What is measured of a trained model, and how it is saved so that transformers alone can load it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
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
    """Accuracy on validation and (once) test, saved with every answer; skipped samples; tokens and FLOPs of a question.

    A run without a test split (`data.splits.test=null`, for tuning) is measured on validation only.
    """
    accuracy, by_kind = {}, {}
    skipped = {"train": skipped_in_training(run_dir / "history.jsonl")}
    loaders = {"val": datamodule.val_dataloader, "test": datamodule.test_dataloader}
    for split in (split for split in loaders if split in datamodule.readers):
        bad: list[str] = []
        predictions = evaluate(model, noting_skipped(loaders[split](), bad))
        predictions.save(run_dir / f"predictions_{split}.npz")
        accuracy[split], by_kind[split] = predictions.accuracy(), predictions.accuracy_by_kind()
        skipped[split] = len(bad)
    question = one_question(
        next(batch for batch in datamodule.val_dataloader() if len(batch)), model.config.vision_config.image_size
    )
    placeholders = int((question.input_ids == model.config.image_token_id).sum())
    return {
        "accuracy": accuracy,
        "accuracy_by_kind": by_kind,
        "skipped": skipped,
        "tokens": placeholders // max(int(question.num_frames), 1),
        "prefill_flops": prefill_flops(model, question.to(model.device)),
    }


def noting_skipped(batches: Iterable[VLMBatch], bad: list[str]) -> Iterator[VLMBatch]:
    """The batches as they come; what each could not read is added to `bad`."""
    for batch in batches:
        bad += batch.skipped
        yield batch


def skipped_in_training(history: Path) -> int:
    """Samples that training passed over, each time it came to one."""
    return sum(len(json.loads(line)["skipped"]) for line in history.read_text().splitlines())


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
