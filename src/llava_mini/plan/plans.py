"""Plans of a training step and of an answer: peak memory, whether it fits the card, what to change if it does not."""

from __future__ import annotations

import time
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from llava_mini import assembly
from llava_mini.config import Config
from llava_mini.errors import refused
from llava_mini.hardware import CUDA_CONTEXT
from llava_mini.plan.advice import Advice
from llava_mini.plan.peaks import Peaks, on_gpu
from llava_mini.plan.report import NAME_A_CARD, Report
from llava_mini.plan.sample import Sample
from llava_mini.plan.search import largest_batch
from llava_mini.units import GIB


def check_card_is_named(config: Config) -> None:
    """Raise UserError if the GPU's memory is unknown, so that --strict has nothing to check."""
    if config.hardware.memory_gib is None:
        raise refused("hardware.memory_gib", None, f"--strict needs to know the card's memory; {NAME_A_CARD}")


def training_plan(
    config: Config, sample: Sample, *, search: bool = True, tokenizer: PreTrainedTokenizerBase | None = None
) -> Report:
    """Plan a training step; `search` also for the largest batch, and for changes if the run does not fit.

    With `memory.fit` memory options and a batch are chosen that fit; the report is of the config with them.
    """
    start = time.monotonic()
    peaks = Peaks(config, sample, tokenizer=tokenizer)
    report = _report(peaks)
    if config.memory.fit and report.memory_bytes is not None and not report.fits:
        chosen = Advice(peaks, report.memory_bytes - report.outside_bytes, finetune=False)
        peaks = chosen.peaks
        report = replace(_report(peaks), chosen=chosen.saved)
    report.notes += _notes(config)
    if report.memory_bytes is not None and search:
        _search(report, peaks)
        if not report.fits:
            found = Advice(peaks, report.memory_bytes - report.outside_bytes)
            report.changes, report.batch_with_changes = found.saved, found.largest
    report.seconds = time.monotonic() - start
    return report


def inference_plan(config: Config, sample: Sample, new_tokens: int) -> Report:
    """Plan an answer of `new_tokens` tokens to a batch of prompts: prefill and KV cache."""
    start = time.monotonic()
    peaks = Peaks(config, sample, new_tokens)
    report = _report(peaks)
    if report.memory_bytes is not None:
        _search(report, peaks)
    report.notes.append(f"an answer: the prompt and {new_tokens} new tokens, whose cache is counted as activations")
    report.seconds = time.monotonic() - start
    return report


def _report(peaks: Peaks) -> Report:
    config = peaks.config
    size, memory = config.data.batch_size, config.hardware.memory_gib
    memory_bytes = None if memory is None else int(memory * GIB)
    report = Report(config, peaks(size), size, peaks.sample, memory_bytes, CUDA_CONTEXT if on_gpu(config) else 0)
    if size > peaks.largest_planned:
        report.notes.append(f"estimated: a batch of {size}, from smaller ones; up to {peaks.largest_planned} are run")
    return report


def _search(report: Report, peaks: Peaks) -> None:
    assert report.memory_bytes is not None
    limit = report.memory_bytes - report.outside_bytes
    report.largest_batch = largest_batch(peaks.bytes, limit, report.batch_size, peaks.largest_planned)
    if report.largest_batch == peaks.largest_planned:
        report.notes.append(f"batches above {report.largest_batch} were not tried")


def _notes(config: Config) -> list[str]:
    ranks = assembly.num_ranks(config)
    if ranks == 1:
        return []
    if config.trainer.strategy == "fsdp":
        return [f"estimated: weights, gradients and optimizer state sharded over {ranks} cards, two layers gathered"]
    return [f"estimated: gradients stored twice, for the exchange between {ranks} cards"]
