"""`llava-mini plan`: memory of a run's step before it starts, whether it fits on the GPU, what to change if not."""

from __future__ import annotations

import argparse
import gc
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from llava_mini import assembly
from llava_mini.command_line.parser import ConfigParser, at_least
from llava_mini.config import Config, check_each_once, resolve
from llava_mini.errors import UserError
from llava_mini.inference.session_plan import TEXT, session_plans, table
from llava_mini.plan.peaks import as_planned, sample_of
from llava_mini.plan.plans import check_card_is_named, inference_plan, training_plan
from llava_mini.units import GIB

NEW_TOKENS, TEXT_TOKENS = 256, 300  # default lengths of an answer and of a sample


def plan(arguments: list[str], config_dirs: tuple[str, ...]) -> int:
    """Print a plan.

    Raises:
        UserError: the arguments have a mistake; or, with --strict, the run does not fit.
    """
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)
    if options.new_tokens is not None and not options.inference:
        parser.error("--new-tokens: only with --inference, which plans an answer")
    if options.session and (options.inference or options.text_tokens or options.frames):
        parser.error("--session: plans a session of so many frames, without --inference, --text-tokens and --frames")
    check_each_once(options.overrides)
    config = resolve(["trainer.max_steps=1", *options.overrides], (*config_dirs, *options.config_dir))
    if options.strict:
        check_card_is_named(config)
    if options.session:
        return _plan_session(config, options.session, as_json=options.json, strict=options.strict)
    sample = sample_of(config, options.text_tokens or TEXT_TOKENS, options.frames or 1)
    with _quiet() if options.json else nullcontext(), _little_garbage():
        found = (
            inference_plan(config, sample, options.new_tokens or NEW_TOKENS)
            if options.inference
            else training_plan(config, sample)
        )
    print(json.dumps(found.as_dict()) if options.json else str(found))
    if options.strict and found.fits is False:
        raise UserError(found.refusal())
    return 0


def _plan_session(config: Config, frames: int, *, as_json: bool, strict: bool) -> int:
    config = as_planned(config)
    with _quiet() if as_json else nullcontext():
        assembly.check_model(config)
        model = assembly.build_model(config, assembly.build_tokenizer(config), device="meta")
    memory = config.hardware.memory_gib
    plans = session_plans("LLaVA-Mini", model, frames, None if memory is None else int(memory * GIB))
    tokens, most = model.layout.frames(frames) + TEXT, model.config.text_config.max_position_embeddings
    longer = f"\nthe language model was trained on {most} tokens: --context {tokens} scales it" if tokens > most else ""
    print(json.dumps([plan.as_dict() for plan in plans]) if as_json else f"{table(plans)}{longer}")
    if strict and not any(plan.fits for plan in plans):
        raise UserError(f"does not fit: at most {max(plan.largest or 0 for plan in plans):,} of {frames:,} frames do")
    return 0


@contextmanager
def _little_garbage() -> Iterator[None]:
    """Exclude imported objects from garbage collection, which a plan runs after every step."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the log, which goes to standard output, where only one JSON object is expected."""
    logger = logging.getLogger("llava_mini")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _parser() -> argparse.ArgumentParser:
    parser = ConfigParser(
        prog="llava-mini plan",
        description="The memory of a run's step by parts, whether it fits the card (hardware=...), the largest batch "
        "that does, and what to turn on if it does not. Needs neither a GPU nor weights.",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config values, as of train")
    parser.add_argument(
        "--config-dir", action="append", default=[], help="a further folder with config groups and code"
    )
    parser.add_argument("--json", action="store_true", help="one object instead of a table")
    parser.add_argument(
        "--strict", action="store_true", help="exit status 2 when it does not fit the card, which must be named"
    )
    parser.add_argument("--text-tokens", type=at_least(1), metavar="N", help=f"of a sample (default: {TEXT_TOKENS})")
    parser.add_argument("--frames", type=at_least(1), metavar="N", help="of a sample (default: 1)")
    parser.add_argument(
        "--session",
        type=at_least(1),
        metavar="FRAMES",
        help="questions about so many frames, not a training step",
    )
    parser.add_argument("--inference", action="store_true", help="an answer instead of a training step")
    parser.add_argument(
        "--new-tokens", type=at_least(1), metavar="N", help=f"of an answer, with --inference (default: {NEW_TOKENS})"
    )
    return parser
