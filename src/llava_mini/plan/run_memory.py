"""Planned peak memory before a run starts, measured peak after it, and the message of a run that is out of memory."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from llava_mini import assembly
from llava_mini.config import Config
from llava_mini.data.stream.datamodule import Mix
from llava_mini.data.stream.samples import collate
from llava_mini.errors import SampleError, UserError, refused
from llava_mini.hardware import CUDA_CONTEXT, free_bytes
from llava_mini.out_of_memory import oom_as
from llava_mini.plan.advice import Advice
from llava_mini.plan.memory_options import Change, finetunings, memory_changes
from llava_mini.plan.peaks import Peaks, as_planned, on_gpu, sample_of
from llava_mini.plan.plans import check_card_is_named, training_plan
from llava_mini.plan.sample import Sample
from llava_mini.run.folder import kept_of
from llava_mini.run.identity import config_hash
from llava_mini.stages.callbacks import peak_memory_bytes
from llava_mini.units import GIB, size_text

log = logging.getLogger("llava_mini")

_LOOKED_AT = 32  # samples of each set; the plan assumes the longest of them
ANOTHER_RUN = "*"  # marks a change of the run's result, so that the run cannot continue in its folder

# Meaning of a measured peak.
ALLOCATED = "the highest that torch's allocator held on the GPU"
GROWTH = "the growth of the process' resident memory, with all in it that is no tensor"
_FAILED = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError, UserError)


class Memory:
    """Planned and measured peak memory of a run on one device."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.before = peak_memory_bytes(torch.device("cpu"))
        self.sample = sample_of(config)
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.planned: int | None = None

    def plan(self, *, strict: bool = False) -> None:
        """Plan the run and log the planned peak. Data that are missing are made, but no features and no weights.

        A run on CPUs that does not fit the memory that is free is refused: the kernel would end it without a word. With
        `strict` a run that does not fit its card is refused too; without, not even a failure of the planning stops it.

        Raises:
            UserError: the run does not fit; its data cannot be read; with `strict`, it cannot be planned.
        """
        train: Mix | None = None
        try:
            with torch.random.fork_rng(devices=[]):  # a run's random numbers must not depend on its plan
                self.tokenizer, image_token_id, train = _training_data(self.config)
                self.sample = longest_sample(self.config, train, image_token_id)
                report = training_plan(self.config, self.sample, search=False, tokenizer=self.tokenizer)
        except _FAILED as error:
            if train is None and isinstance(error, UserError):
                raise  # the run itself would find it
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            if strict:
                why = f"--strict: this run's memory could not be planned ({reason})"
                raise UserError(why, key="--strict") from error
            log.warning("plan: this run's memory could not be planned (%s)", reason)
            return
        self.planned, self.config = report.peak.bytes, report.config
        if report.chosen:
            changes = " ".join(change.change for change in report.chosen)
            log.info("memory=auto: %s, so that a step fits the card: %s", changes, size_text(self.planned))
        if on_cpu(self.config) and self.config.memory.must_fit:
            self._check_free(self.planned)
        if report.fits is False:
            refusal = f"{report.refusal()}; llava-mini plan says what to change"
            if strict:
                raise UserError(refusal)
            log.warning("plan: %s", refusal)
            return
        log.info("plan: a step takes %s%s", size_text(self.planned), ", the card has that" if report.fits else "")

    def _check_free(self, planned: int) -> None:
        """Refuse a step on CPUs that takes more than what is free, before the run has taken any of it."""
        trainer = self.config.trainer
        ranks = 1 if trainer.strategy == "fsdp" else trainer.devices  # shards of all ranks are one model together
        needed, free = planned * ranks, free_bytes(torch.device("cpu"))
        if needed <= free:
            return
        of_each = f" ({ranks} ranks, {size_text(planned)} each)" if ranks > 1 else ""
        raise refused(
            "memory.must_fit",
            True,
            f"a step takes {size_text(needed)}{of_each} and {size_text(free)} are free here; take a smaller "
            "data.batch_size and more trainer.accumulate_grad_batches (llava-mini plan ... hardware.memory_gib="
            f"{free / ranks / GIB:.2f} says which, and what else saves), or memory.must_fit=false to begin anyway",
        )

    def measured(self, device: torch.device) -> dict[str, Any]:
        """Return both peaks, and what the measured one means, for the run's result. Call it when training ends."""
        peak = peak_memory_bytes(device) - (0 if device.type == "cuda" else self.before)
        what = ALLOCATED if device.type == "cuda" else GROWTH
        if self.planned is not None:
            log.info("plan: %s of tensors; measured: %s, %s", size_text(self.planned), size_text(peak), what)
        return {"planned_peak_bytes": self.planned, "measured_peak_bytes": peak, "measured_peak_is": what}

    def advice(self) -> list[Change]:
        """Return the plan's changes for a run that was out of memory; all that may help if planning fails."""
        log.info("out of memory; planning what saves it")
        memory = self.config.hardware.memory_gib
        try:
            peaks = Peaks(self.config, self.sample, tokenizer=self.tokenizer)
            outside = CUDA_CONTEXT if on_gpu(self.config) else 0
            found = Advice(peaks, None if memory is None else int(memory * GIB) - outside)
            if not found.changes:  # the plan says that the run fits, but it did not
                found = Advice(peaks, None)
        except _FAILED:
            return [*memory_changes(self.config), *finetunings(self.config)]
        return found.changes


def check_fits(config: Config) -> None:
    """Refuse a run that does not fit on its GPU, before its weights are read and its ranks start. The data is built.

    Raises:
        UserError: the run does not fit, cannot be planned, or names no GPU.
    """
    check_card_is_named(config)
    Memory(assembly.with_steps(config)).plan(strict=True)


def on_cpu(config: Config) -> bool:
    """Whether the run trains on CPUs; `auto` means them only if there is no other device here."""
    accelerator = config.trainer.accelerator
    return accelerator == "cpu" or (
        accelerator == "auto" and not torch.cuda.is_available() and not torch.backends.mps.is_available()
    )


def _training_data(config: Config) -> tuple[PreTrainedTokenizerBase, int, Mix]:
    """Return the tokenizer, the placeholder's id and the training data, whose samples have pixels and no features.

    A vision tower without weights cannot compute features.
    """
    tokenizer = assembly.build_tokenizer(config)
    assembly.check_model(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about weights on meta, which are never initialized
        model = assembly.build_model(as_planned(config), tokenizer, device="meta")
    as_images = config.changed({"data": {"features": False}})
    datamodule = assembly.build_datamodule(as_images, model, assembly.build_processor(config, model, tokenizer))
    return tokenizer, model.config.image_token_id, datamodule.splits["train"]


def longest_sample(config: Config, mix: Mix, image_token_id: int) -> Sample:
    """Return a sample with the largest text length and frame count among some samples of each shard set.

    Raises:
        UserError: none of these samples can be used.
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
        stored_features=bool(config.data.features),
        independent_turns=batch.turn_ids is not None,
    )


class RunOutOfMemoryError(RuntimeError):
    """Error that training is out of memory. The message is for the user."""


@contextmanager
def oom_as_run_error(config: Config, step: Callable[[], int], advice: Callable[[], list[Change]]) -> Iterator[None]:
    """Turn an out-of-memory error into one line.

    `step` returns the number of optimizer steps done; `advice`, called only when out of memory, config changes that
    save memory, in order.

    Raises:
        RunOutOfMemoryError: torch or Python ran out of memory; it replaces their own error.
    """
    with oom_as(lambda reason: RunOutOfMemoryError(message(config, step(), reason, advice()))):
        yield


def message(config: Config, step: int, reason: str, advice: list[Change]) -> str:
    """Return the line for the user."""
    start = f"out of memory at step {step} ({reason}); {kept_of(config)}; "
    if not advice:
        return f"{start}nothing is left to turn on: shorten data.max_length, or take a smaller model or a larger card"
    named = _named(config, advice)
    marked = any(item.endswith(ANOTHER_RUN) for item in named)
    return f"{start}try, one after another, cheapest first: {'; '.join(named)}" + (
        f" ({ANOTHER_RUN} in another run_dir)" if marked else ""
    )


def _named(config: Config, advice: list[Change]) -> list[str]:
    """Return the changes as text, each marked if its run cannot continue in the folder of this one."""
    here = config_hash(config)
    return [f"{change.text}{'' if config_hash(change.of(config)) == here else ANOTHER_RUN}" for change in advice]
