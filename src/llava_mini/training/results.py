"""Measure a trained model, and save it so that transformers alone can load it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from llava_mini.batch import IGNORE, BadSample, VLMBatch
from llava_mini.config.types import Config, Model
from llava_mini.data.stream.callbacks import QUARANTINE
from llava_mini.data.stream.datamodule import Mix, VLMDataModule
from llava_mini.data.stream.samples import SampleReader, collate
from llava_mini.errors import SampleError, UserError
from llava_mini.evaluate.accuracy import evaluate
from llava_mini.evaluate.convergence import convergence
from llava_mini.evaluate.flops import prefill_flops
from llava_mini.files import rank_paths, whole_lines, writing
from llava_mini.finetune import is_adapted, save_trained
from llava_mini.models import LlavaMiniForConditionalGeneration, LlavaMiniProcessor
from llava_mini.predictions import Predictions
from llava_mini.stages.callbacks import VALIDATIONS
from llava_mini.stages.metrics import word_marks


def measured(
    model: LlavaMiniForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    datamodule: VLMDataModule,
    run_dir: Path,
    steps: int,
) -> dict[str, Any]:
    """Return scores on validation and (once) test, convergence, and tokens and FLOPs of a question.

    The scores of every answer are saved in `run_dir`, which has the run's validations. A run without a test split
    (`data.test=null`, for tuning) is measured on validation only.

    Returns:
        `accuracy` {split: share of exact matches}; `word_accuracy` and `nll` {split: {group: mean over its kinds}};
        `accuracy_by_kind`, `word_accuracy_by_kind`, `nll_by_kind` {split: {kind: mean}}; the keys of `convergence`;
        `steps` of the run; `skipped` {split: samples}; `tokens` per frame; `prefill_flops` of a question.

    Raises:
        UserError: a score is NaN or infinite, for example because the last step has ruined the weights.
    """
    marks_V = word_marks(tokenizer, model.config.text_config.vocab_size)
    scores: dict[str, Predictions] = {}
    skipped = {"train": sum(1 for path in rank_paths(run_dir / QUARANTINE) for _ in whole_lines(path))}
    for split in (split for split in ("val", "test") if split in datamodule.splits):
        bad: list[BadSample] = []
        batches = noting_skipped(datamodule.evaluation_batches(split, model.device), bad)
        scores[split] = evaluate(model, batches, marks_V).predictions()
        scores[split].check(f"{split}, after the last step")
        scores[split].save(run_dir / f"predictions_{split}.npz")
        skipped[split] = len(bad)
    question = one_question(question_sample(datamodule.splits["val"]), model.config.vision_config.image_size)
    placeholders = int((question.input_ids == model.config.image_token_id).sum())
    return {
        "accuracy": {split: of.accuracy() for split, of in scores.items()},
        "accuracy_by_kind": {split: of.by_kind("exact_match") for split, of in scores.items()},
        **{name: {split: of.group_means(name) for split, of in scores.items()} for name in ("word_accuracy", "nll")},
        **{
            f"{name}_by_kind": {split: of.by_kind(name) for split, of in scores.items()}
            for name in ("word_accuracy", "nll")
        },
        **convergence(run_dir / VALIDATIONS, steps, scores["val"]),
        "steps": steps,
        "skipped": skipped,
        "tokens": placeholders // max(int(question.num_frames), 1),
        "prefill_flops": prefill_flops(model, question.to(model.device)),
    }


def noting_skipped(batches: Iterable[VLMBatch], bad: list[BadSample]) -> Iterator[VLMBatch]:
    """Yield the batches unchanged, and add their skipped samples to `bad`."""
    for batch in batches:
        bad += batch.skipped
        yield batch


def question_sample(mix: Mix) -> VLMBatch:
    """Return a batch of one sample: the first with one frame, else with several, else without.

    Raises:
        UserError: no sample can be used.
    """
    for reader, index in _by_images(mix):
        try:
            return collate([reader(index)], reader.tokenize.pad_token_id)
        except SampleError:
            continue
    raise UserError("validation: none of the split's samples could be read; the log says why for each")


def _by_images(mix: Mix) -> Iterator[tuple[SampleReader, int]]:
    for group in (1, 2, 0):
        for reader in mix.readers:
            images = np.minimum(reader.shards.index["frames"], 2)
            for index in np.flatnonzero(images == group):
                yield reader, int(index)


def one_question(batch: VLMBatch, image_size: int) -> VLMBatch:
    """Return the first sample's first question as at inference: no answer, no further turns.

    Its frames are black images with as many views as the batch's, because a batch may contain features instead of
    pixels.
    """
    seen = batch.pixel_values if batch.image_features is None else batch.image_features
    frames = int(batch.num_frames[0])
    pixel_values = None if seen is None else torch.zeros(frames, seen.shape[1], 3, image_size, image_size)
    unanswered = batch.labels[0] == IGNORE
    first = batch.turn_ids[0] <= 1 if batch.turn_ids is not None else (~unanswered).cumsum(0) == 0
    kept = unanswered & first & batch.attention_mask[0].bool()
    ids = batch.input_ids[0][kept][None]
    return replace(
        batch,
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        labels=torch.full_like(ids, IGNORE),
        num_frames=batch.num_frames[:1],
        pixel_values=pixel_values,
        image_features=None,
        num_views=None if batch.num_views is None else batch.num_views[:frames],
        turn_ids=None,
    )


def save_run(
    model: LlavaMiniForConditionalGeneration,
    processor: LlavaMiniProcessor,
    config: Config,
    base: dict[str, str],
) -> None:
    """Write what a run has trained into its `model` folder.

    This is the whole model. For a run with adapters or a 4-bit base it is only the trained weights and a description of
    the base, which `base` gives the fingerprints of as it was loaded.
    """
    folder, finetune = Path(config.run_dir) / "model", config.finetune
    if is_adapted(finetune):
        with writing(folder):
            save_trained(
                model,
                folder,
                finetune,
                {**weights_of(config.model), "fingerprints": base, "finetune": asdict(finetune)},
            )
    else:
        save_model(model, processor, folder)


def weights_of(spec: Model) -> dict[str, Any]:
    """Return where a base's weights come from: the list `weights`, and as one text, for PEFT, `language_model`."""
    if parts := spec.parts:
        return {"weights": [parts.vision_tower, parts.language_model], "language_model": parts.language_model}
    places = [str(folder) for folder in spec.folders] or ["random weights"]
    return {"weights": places, "language_model": ", ".join(places)}


def save_model(model: LlavaMiniForConditionalGeneration, processor: LlavaMiniProcessor, folder: Path) -> None:
    """Write model and processor in transformers' format."""
    with writing(folder):
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
