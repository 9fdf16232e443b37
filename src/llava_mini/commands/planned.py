"""What a run is planned to take before it begins, and what it has taken, so that the plan's error is always known."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from llava_mini import build
from llava_mini.commands.advice import Advice
from llava_mini.commands.peaks import Peaks, as_planned, on_gpu, sample_of
from llava_mini.commands.plan import check_card_is_named, training_plan
from llava_mini.data.collate import collate
from llava_mini.data.datamodule import Mix, VLMDataModule
from llava_mini.data.errors import SampleError
from llava_mini.errors import UserError
from llava_mini.hardware import memory_text
from llava_mini.plan.memory_options import Change, finetunings, memory_changes
from llava_mini.plan.report import GIB, OUTSIDE
from llava_mini.plan.sample import Sample
from llava_mini.stages.callbacks import peak_memory_bytes

log = logging.getLogger("llava_mini")

_LOOKED_AT = 32  # samples of each set, whose longest is what the plan assumes


# What a measured peak is.
ALLOCATED = "the highest that torch's allocator held on the GPU"
GROWTH = "the growth of the process' resident memory, with all in it that is no tensor"
_FAILED = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError, UserError)


class Memory:
    """The planned and the measured peak of a run on one device.

    Args:
        config: The run's.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.before = peak_memory_bytes(torch.device("cpu"))
        self.sample = sample_of(config)
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.planned: int | None = None

    def plan(
        self,
        datamodule: VLMDataModule,
        tokenizer: PreTrainedTokenizerBase,
        image_token_id: int,
        *,
        strict: bool = False,
    ) -> None:
        """Plan the run and tell the figure; a mistake in planning stops no run that is not strict.

        Args:
            datamodule: With the training samples.
            tokenizer: The run's.
            image_token_id: The placeholder's.
            strict: Whether what does not fit is refused.

        Raises:
            UserError: with `strict`, when it does not fit or cannot be planned.
        """
        self.tokenizer = tokenizer
        try:
            self.sample = longest_sample(self.config, datamodule.splits["train"], image_token_id)
            with torch.random.fork_rng(devices=[]):  # what a run draws does not depend on its plan
                report = training_plan(self.config, self.sample, search=False, tokenizer=tokenizer)
        except _FAILED as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            if strict:
                raise UserError(f"--strict: this run's memory could not be planned ({reason})") from error
            log.warning("plan: this run's memory could not be planned (%s)", reason)
            return
        self.planned = report.peak.bytes
        if report.fits is False:
            refusal = f"{report.refusal()}; llava-mini plan says what to change"
            if strict:
                raise UserError(refusal)
            log.warning("plan: %s", refusal)
            return
        log.info("plan: a step takes %s%s", memory_text(self.planned), ", the card has that" if report.fits else "")

    def measured(self, device: torch.device) -> dict[str, Any]:
        """Both peaks, and which the measured one is, for the run's result; to be asked when training ends."""
        peak = peak_memory_bytes(device) - (0 if device.type == "cuda" else self.before)
        what = ALLOCATED if device.type == "cuda" else GROWTH
        if self.planned is not None:
            log.info("plan: %s of tensors; measured: %s, %s", memory_text(self.planned), memory_text(peak), what)
        return {"planned_peak_bytes": self.planned, "measured_peak_bytes": peak, "measured_peak_is": what}

    def advice(self) -> list[Change]:
        """What the plan says to change, for a run that has not had enough memory; without a plan, all that may help."""
        log.info("out of memory; planning what saves it")
        memory = self.config["hardware"]["memory_gib"]
        try:
            peaks = Peaks(self.config, self.sample, tokenizer=self.tokenizer)
            outside = OUTSIDE if on_gpu(self.config) else 0
            found = Advice(peaks, None if memory is None else int(memory * GIB) - outside)
            if not found.changes:  # the plan says that it fits, which it did not
                found = Advice(peaks, None)
        except _FAILED:
            return [*memory_changes(self.config), *finetunings(self.config)]
        return found.changes


def check_fits(config: dict[str, Any]) -> None:
    """Refuse a run that does not fit its card, before its weights are read and its ranks begin; data are made for it.

    Raises:
        UserError: it does not fit, cannot be planned, or names no card.
    """
    check_card_is_named(config)
    tokenizer = build.build_tokenizer(as_planned(config))
    build.check_model(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights on meta, which are never initialised
        model = build.build_model(as_planned(config), tokenizer, device="meta")
    # a tower without weights makes no features
    as_pictures = {**config, "data": {**config["data"], "features": False}}
    datamodule = build.build_datamodule(as_pictures, model, build.build_processor(config, model, tokenizer))
    Memory(config).plan(datamodule, tokenizer, model.config.image_token_id, strict=True)


def longest_sample(config: dict[str, Any], mix: Mix, image_token_id: int) -> Sample:
    """As long, with as many frames, as the longest of some samples of each set.

    Raises:
        UserError: none of them can be used.
    """
    samples = []
    for reader in mix.readers:
        count = len(reader.shards.index["frames"])
        for index in np.linspace(0, count - 1, min(count, _LOOKED_AT)).astype(int):
            try:
                samples.append((reader(int(index)), reader.tokenize.pad_token_id))
            except SampleError:
                continue
    if not samples:
        raise UserError("none of the first samples could be read")
    batch = collate([sample for sample, _ in samples], samples[0][1])
    seen = batch.pixel_values if batch.image_features is None else batch.image_features
    return Sample(
        text_tokens=int(((batch.input_ids != image_token_id) & batch.attention_mask.bool()).sum(1).max()),
        frames=int(batch.num_frames.max()),
        views=1 if seen is None else seen.shape[1],
        stored_features=bool(config["data"]["features"]),
        independent_turns=batch.turn_ids is not None,
    )
