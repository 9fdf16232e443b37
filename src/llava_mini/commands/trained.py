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
    pixels = torch.zeros(1, 1, 3, *[model.config.vision_config.image_size] * 2)
    question = one_question(next(iter(datamodule.val_dataloader())), pixels)
    return {
        "accuracy": accuracy,
        "accuracy_by_kind": by_kind,
        "tokens": model.tokens_per_frame(),
        "prefill_flops": prefill_flops(model, question),
    }


def one_question(batch: VLMBatch, pixel_values: torch.Tensor) -> VLMBatch:
    """The first sample's first question with its image, as at inference: no answer, no further turns."""
    unanswered = batch.labels[0] == -100
    first = batch.turn_ids[0] <= 1 if batch.turn_ids is not None else (~unanswered).cumsum(0) == 0
    kept = unanswered & first & batch.attention_mask[0].bool()
    ids = batch.input_ids[0][kept][None]
    return replace(
        batch,
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        labels=torch.full_like(ids, -100),
        num_frames=torch.ones(1, dtype=torch.long),
        pixel_values=pixel_values,
        image_features=None,
        turn_ids=None,
    )


def save_model(model: LlavaMiniForConditionalGeneration, processor: LlavaMiniProcessor, folder: Path) -> None:
    """Write model and processor in transformers' format."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
