"""`llava-mini plan`: the memory of a run's step before it is begun, whether it fits the card, what to change if not."""

from __future__ import annotations

import argparse
import gc
import json
import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from llava_mini import build
from llava_mini.config import resolve
from llava_mini.errors import UserError
from llava_mini.finetune import compute_dtype
from llava_mini.plan.ledger import FROZEN, GRADIENTS, OPTIMIZER, QUANTIZED, TRAINED, WORKSPACE
from llava_mini.plan.planner import Peak, Planner
from llava_mini.plan.report import CUBLAS, GIB, OUTSIDE, Report, Saver
from llava_mini.plan.sample import Sample
from llava_mini.plan.savers import offers
from llava_mini.plan.search import largest_batch
from llava_mini.plan.stand_ins import linear_4bit
from llava_mini.plan.step import Mode
from llava_mini.views import NUM_VIEWS

Config = dict[str, Any]
_DEALT = (FROZEN, TRAINED, QUANTIZED, GRADIENTS, OPTIMIZER)


def plan(arguments: list[str], config_dirs: tuple[str, ...]) -> int:
    """Print a plan.

    Returns:
        The exit status.

    Raises:
        UserError: a mistake in the arguments; or, with --strict, that it does not fit.
    """
    options = _parser().parse_intermixed_args(arguments)
    config = resolve(["trainer.max_steps=1", *options.overrides], (*config_dirs, *options.config_dir))
    sample = sample_of(config, options.text_tokens, options.frames)
    with _quiet() if options.json else nullcontext():
        found = (
            inference_plan(config, sample, options.new_tokens) if options.inference else training_plan(config, sample)
        )
    print(json.dumps(found.as_dict()) if options.json else str(found))
    if options.strict and found.fits is False:
        raise UserError(found.refusal())
    return 0


@contextmanager
def _quiet() -> Iterator[None]:
    """What is logged goes to standard output, where one object alone is expected."""
    logger = logging.getLogger("llava_mini")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def sample_of(config: Config, text_tokens: int = 300, frames: int = 1) -> Sample:
    """The sample that is assumed: a picture with the config's views, or a video, whose frames have one."""
    return Sample(
        text_tokens=text_tokens,
        frames=frames,
        views=NUM_VIEWS[config["data"]["views"]] if frames == 1 else 1,
        stored_features=bool(config["data"]["features"]),
        independent_turns=config["data"]["turns"] == "independent",
    )


def planner_of(config: Config, sample: Sample) -> Planner:
    """A planner for a config; nothing is downloaded or read but a tokenizer that is here.

    Raises:
        UserError: for DoRA over NF4: PEFT unpacks the weights themselves, which have no numbers here.
    """
    spec, adapters = config["model"], config["finetune"]["lora"]
    if config["finetune"]["quantize"] is not None and adapters is not None and adapters["dora"]:
        raise UserError("finetune.lora.dora=true with finetune.quantize=nf4 cannot be planned; it takes more than LoRA")
    if spec["weights"] == "hub" and "vocab_size" in spec["text_config"]:
        config = {**config, "model": {**spec, "weights": "random"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights on meta, which are never initialised
        build.check_model(config)
        model = build.build_model(config, build.build_tokenizer(config), device="meta")
        stage = build.build_stage(config, model, linear_4bit=linear_4bit)
    precision = config["trainer"]["precision"]
    mixed, dtype = precision.endswith("-mixed"), compute_dtype(precision)
    if not mixed and dtype != torch.float32:
        stage.to(dtype)
    trainer = config["trainer"]
    mode = Mode(
        autocast=dtype if mixed else None,
        on_gpu=on_gpu(config),
        clip=trainer["gradient_clip_val"],
        accumulate=trainer["accumulate_grad_batches"],
    )
    return Planner(stage, mode, sample)


def on_gpu(config: Config) -> bool:
    """Whether the run is meant for a GPU, be there one here or not."""
    accelerator = config["trainer"]["accelerator"]
    return accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())


def training_plan(config: Config, sample: Sample, *, search: bool = True) -> Report:
    """Plan a training step.

    Args:
        config: The run's.
        sample: What is assumed of a sample.
        search: Whether to look for the largest batch, and for savers where it does not fit.
    """
    start = time.monotonic()
    planner = planner_of(config, sample)
    peak_of = _peaks(planner, config)
    report = _report(config, sample, peak_of(config["data"]["batch_size"]))
    report.notes += _notes(config)
    if report.memory_bytes is not None and search:
        limit = report.memory_bytes - OUTSIDE
        report.largest_batch = largest_batch(lambda size: peak_of(size).bytes, limit, report.batch_size)
        if not report.fits:
            changes = offers(config, planner.stage)
            del planner, peak_of
            _advise(report, config, changes, limit)
    report.seconds = time.monotonic() - start
    return report


def inference_plan(config: Config, sample: Sample, new_tokens: int) -> Report:
    """Plan an answer of so many tokens to a batch of prompts: prefill and cache."""
    start = time.monotonic()
    planner = planner_of(config, sample)

    @cache
    def peak_of(size: int) -> Peak:
        return _on_card(planner.answer(size, new_tokens), config)

    report = _report(config, sample, peak_of(config["data"]["batch_size"]))
    if report.memory_bytes is not None:
        limit = report.memory_bytes - OUTSIDE
        report.largest_batch = largest_batch(lambda size: peak_of(size).bytes, limit, report.batch_size)
    report.notes.append(f"inference: prefill and {new_tokens} new tokens")
    report.seconds = time.monotonic() - start
    return report


def _report(config: Config, sample: Sample, peak: Peak) -> Report:
    memory = config["hardware"]["memory_gib"]
    memory_bytes = None if memory is None else int(memory * GIB)
    return Report(peak, config["data"]["batch_size"], sample, memory_bytes, OUTSIDE if on_gpu(config) else 0)


def _peaks(planner: Planner, config: Config) -> Any:
    """Peaks by batch size, each planned once."""

    @cache
    def peak_of(size: int) -> Peak:
        return _on_card(planner.step(size), config, planner)

    return peak_of


def _advise(report: Report, config: Config, changes: list[tuple[dict[str, Any], str]], limit: int) -> None:
    """Turn on one saver after another until the config's batch fits; then look for the largest batch."""
    size = report.batch_size
    for change, cost in changes:
        gc.collect()
        config = {**config, "savers": {**config["savers"], **change}}
        planner = planner_of(config, report.sample)
        peak_of = _peaks(planner, config)
        peak = peak_of(size).bytes
        named = " ".join(f"savers.{key}={str(value).lower()}" for key, value in change.items())
        report.savers.append(Saver(named, cost, peak))
        if peak <= limit:
            break
    else:
        if not changes:
            return
    report.batch_with_savers = largest_batch(lambda batch: peak_of(batch).bytes, limit, size)


def _on_card(peak: Peak, config: Config, planner: Planner | None = None) -> Peak:
    """A peak as it is on one card: with cuBLAS' workspace, and with what several cards share or hold twice."""
    if not on_gpu(config):
        return peak
    parts = dict(peak.breakdown)
    parts[WORKSPACE] += CUBLAS
    ranks = build.num_ranks(config)
    if ranks > 1 and config["trainer"]["strategy"] == "fsdp" and planner is not None:
        for part in _DEALT:
            parts[part] = -(-parts[part] // ranks)
        layers = [*planner.model.prefusion.layers, *planner.model.get_decoder().layers]
        parts[WORKSPACE] += 2 * max(sum(p.numel() * p.element_size() for p in layer.parameters()) for layer in layers)
    elif ranks > 1:
        parts[GRADIENTS] *= 2
    return replace(peak, bytes=sum(parts.values()), breakdown=parts)


def _notes(config: Config) -> list[str]:
    ranks = build.num_ranks(config)
    if ranks == 1:
        return []
    if config["trainer"]["strategy"] == "fsdp":
        return [f"estimated: weights, gradients and optimiser state dealt to {ranks} cards, two layers gathered"]
    return [f"estimated: gradients held twice, for the exchange between {ranks} cards"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llava-mini plan",
        description="The memory of a run's step by parts, whether it fits the card (hardware=...), the largest batch "
        "that does, and what to turn on if it does not. Needs neither a GPU nor weights.",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config values, as of train")
    parser.add_argument(
        "--config-dir", action="append", default=[], help="a further folder with config groups and code"
    )
    parser.add_argument("--json", action="store_true", help="one object instead of a table")
    parser.add_argument("--strict", action="store_true", help="exit status 2 when it does not fit")
    parser.add_argument("--text-tokens", type=_count, default=300, metavar="N", help="of a sample (default: 300)")
    parser.add_argument("--frames", type=_count, default=1, metavar="N", help="of a sample (default: 1)")
    parser.add_argument("--inference", action="store_true", help="an answer instead of a training step")
    parser.add_argument("--new-tokens", type=_count, default=256, metavar="N", help="of an answer (default: 256)")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: allowed are whole numbers of 1 and above")
    return int(text)
