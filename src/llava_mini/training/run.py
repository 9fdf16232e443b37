"""One run from config to result.json in its own folder. A killed run resumes there."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.loggers import Logger

from llava_mini import assembly
from llava_mini.config import Config, save
from llava_mini.data.stream.datamodule import VLMDataModule
from llava_mini.files import write_json
from llava_mini.finetune import fingerprints, num_parameters
from llava_mini.models import LlavaMiniForConditionalGeneration, LlavaMiniProcessor
from llava_mini.models.configuration import PARTS
from llava_mini.plan.run_memory import Memory, oom_as_run_error
from llava_mini.run.folder import claim, last_checkpoint
from llava_mini.run.identity import config_hash
from llava_mini.run.provenance import code_version, git_commit
from llava_mini.run.ranks import own_rank
from llava_mini.run.tracked import track_result, tracked
from llava_mini.stages.base import VLMStage
from llava_mini.stages.callbacks import Clock
from llava_mini.stages.sharding import Gathered
from llava_mini.training.lost_rank import lost_rank_as_error
from llava_mini.training.results import measured, save_run, weights_of

log = logging.getLogger("llava_mini")


@dataclass
class Run:
    """Objects that are built from a config, and fingerprints of the weights that the run started from."""

    model: LlavaMiniForConditionalGeneration
    processor: LlavaMiniProcessor
    datamodule: VLMDataModule
    stage: VLMStage
    base: dict[str, str]


def assemble(config: Config) -> Run:
    """Build everything that a run needs. Missing data and features are made."""
    assembly.check_training(config)
    tokenizer, model = assembly.build_base(config)
    processor = assembly.build_processor(config, model, tokenizer)
    datamodule = assembly.build_datamodule(config, model, processor)
    base = fingerprints(model)
    return Run(model, processor, datamodule, assembly.build_stage(config, model, tokenizer), base)


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn Lightning's SystemExit on Ctrl-C back into a KeyboardInterrupt, so that the command can report it."""
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error


def fit(run: Run, config: Config, clock: Clock, loggers: list[Logger], memory: Memory | None = None) -> Trainer:
    """Train from the last checkpoint in the run's folder, or from the start; the trainer has the last metrics.

    Raises:
        KeyboardInterrupt: the run was interrupted; Lightning has then shut down cleanly.
        RunOutOfMemoryError: a device or the host is out of memory.
        LostRankError: another rank stops answering.
    """
    trainer = assembly.build_trainer(config, run.datamodule, clock, loggers)
    last = last_checkpoint(config)
    advice = (memory or Memory(config)).advice

    def step_now() -> int:
        return int(trainer.global_step)

    with interruptible(), lost_rank_as_error(config, step_now), oom_as_run_error(config, step_now, advice):
        trainer.fit(run.stage, run.datamodule, ckpt_path=str(last) if last.exists() else None)
    # The rest is done by one process, on all data. Lightning has moved the model off its device.
    if torch.distributed.is_initialized():
        trainer.strategy.barrier()
        torch.distributed.destroy_process_group()
    if config.trainer.strategy == "fsdp":
        if own_rank():
            return trainer
        _make_whole(run, config, trainer)
    run.datamodule.trainer = None
    run.stage.to(trainer.strategy.root_device)
    return trainer


def _make_whole(run: Run, config: Config, trainer: Trainer) -> None:
    """Replace the sharded model, which ends with the ranks, by a model with all weights."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it where mypy does not look
    gathered = next(callback for callback in callbacks if isinstance(callback, Gathered))
    whole = assemble(config)
    whole.stage.load_state_dict(gathered.state)
    run.model, run.stage, run.datamodule = whole.model, whole.stage, whole.datamodule


def train_run(config: Config) -> Path:
    """Train, evaluate on validation and test, write the run's result, and return the run's folder.

    With several ranks, all train and only rank 0 does the rest.

    Raises:
        UserError: the folder contains another run, the config is impossible, or the run does not fit a CPU's memory.
    """
    run_dir = Path(config.run_dir)
    if claim(run_dir, config):
        return run_dir
    given, config = config, assembly.with_steps(config)
    clock, memory = Clock(), Memory(config)
    if not own_rank() or config.memory.fit:  # which every rank finds by itself, from the same samples
        memory.plan()  # before weights and features take any of the memory
        config = memory.config
    run = assemble(config)
    if own_rank():
        fit(run, config, clock, [])
        return run_dir
    log.info("%s", run.stage.parts_table())
    identity = _identity(given)
    save(given, run_dir / "config.yaml")
    write_json(run_dir / "code.json", {key: identity[key] for key in ("code_version", "commit")})
    with tracked(config, run.datamodule.splits) as (tracker, loggers):
        trainer = fit(run, config, clock, loggers, memory)
        peaks = memory.measured(trainer.strategy.root_device)
        save_run(run.model, run.processor, config, run.base)
        with evaluation_precision(config, trainer):
            figures = measured(run.model, run.processor.tokenizer, run.datamodule, run_dir, config.trainer.steps)
        result = {
            "status": "finished",
            **identity,
            "params": {part: num_parameters(run.model.get_submodule(part)) for part in PARTS},
            **figures,
            **clock.used(run.stage.device, assembly.num_ranks(config)),
            **peaks,
            "mlflow_run_id": tracker.run_id(wait=5.0) if tracker else None,
        }
        if tracker:
            track_result(tracker, config, result)
        write_json(run_dir / "result.json", result)
    log.info("%s; %s", scores_text(result), run_dir / "result.json")
    return run_dir


def scores_text(result: dict[str, Any]) -> str:
    """Return `exact match val 0.81, test 0.80; word accuracy of dense kinds val 0.92, test 0.91; ...` of a result."""
    texts = ["exact match " + ", ".join(f"{split} {share:.4f}" for split, share in result["accuracy"].items())]
    groups = dict.fromkeys(group for means in result["word_accuracy"].values() for group in means)
    for group in groups:
        shares = [f"{split} {means[group]:.4f}" for split, means in result["word_accuracy"].items() if group in means]
        texts.append(f"word accuracy of {group.replace('_', '-')} kinds {', '.join(shares)}")
    return "; ".join(texts)


def evaluation_precision(config: Config, trainer: Trainer) -> AbstractContextManager[Any]:
    """Return a context with the precision of training if `memory.frozen_dtype` is set, else one without effect."""
    return trainer.precision_plugin.forward_context() if config.memory.frozen_dtype else nullcontext()


def _identity(config: Config) -> dict[str, Any]:
    return {
        "config_hash": config_hash(config),
        "code_version": code_version(),
        "commit": git_commit(),
        "seed": config.seed,
        "compressor": config.choices["compressor"],
        "C": config.compressor.get("C"),
        "n_fusion": config.fusion.num_layers,
        "start": ", ".join(weights_of(config.model)["weights"]),
    }
