"""Build training from a config: fine-tuning, the stage, Lightning's Trainer and its callbacks, for any devices."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer, seed_everything
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from transformers import PreTrainedTokenizerBase

from llava_mini import finetune
from llava_mini.assembly.base import frozen_dtype
from llava_mini.assembly.model import build_model, check_model
from llava_mini.assembly.tokenizer import build_tokenizer
from llava_mini.config import Config, instantiate
from llava_mini.config.types import Trainer as TrainerConfig
from llava_mini.data.stream.callbacks import Quarantine, StreamPosition
from llava_mini.data.stream.datamodule import VLMDataModule
from llava_mini.errors import UserError, named_as, refused
from llava_mini.hardware import check_card, find_cards
from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.models.memory_options import apply_memory_options
from llava_mini.stages.base import VLMStage
from llava_mini.stages.callbacks import Clock, History, Progress, Validations
from llava_mini.stages.checkpointing import AtomicCheckpointIO
from llava_mini.stages.metrics import word_marks
from llava_mini.stages.optimizers import check_optimizer
from llava_mini.stages.sharding import Gathered


def seed_run(config: Config) -> None:
    """Seed all generators and set the number of threads of this process."""
    seed_everything(config.seed, verbose=False)
    torch.set_num_threads(config.trainer.threads)


def build_base(config: Config) -> tuple[PreTrainedTokenizerBase, LlavaMiniForConditionalGeneration]:
    """Build the tokenizer and the model that a run starts from; random weights, too, are the same for every caller.

    Raises:
        UserError: `check_model` or `build_model` raises it.
    """
    seed_run(config)
    tokenizer = build_tokenizer(config)
    check_model(config)
    return tokenizer, build_model(config, tokenizer)


def check_training(config: Config) -> None:
    """Check that this machine has what a run needs, before anything is made for it.

    Raises:
        UserError: a package is not installed, or devices do not exist or cannot be used by torch.
    """
    if config.tracking.enabled:
        instantiate(config.tracker, "tracker")  # which checks that it is installed
    finetune.check_packages(config.finetune)
    check_optimizer(config.memory.optimizer, "cuda" if uses_gpu(config) else "cpu")
    _check_hardware(config.trainer, on_gpu=uses_gpu(config))


def fine_tune(config: Config, model: LlavaMiniForConditionalGeneration, **options: Any) -> None:
    """Quantize, adapt and freeze a model in place; its weights are those that the run starts from.

    Of the config `seed`, `finetune`, `trainer.precision` and `memory.frozen_dtype` are read. The options are those of
    `llava_mini.finetune.apply`.

    Raises:
        UserError: a package that this needs is missing.
    """
    torch.manual_seed(config.seed)  # adapters start alike, whether or not data and features had to be made before
    compute_dtype = finetune.compute_dtype(config.trainer.precision)
    options = {"compute_dtype": compute_dtype, "frozen_dtype": frozen_dtype(config), **options}
    finetune.apply(model, config.finetune, **options)


def build_stage(
    config: Config,
    model: LlavaMiniForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **options: Any,
) -> VLMStage:
    """Build the LightningModule of the stage, with a model that saves memory as the config says.

    The model has the weights that the run starts from. Validation separates words by the tokenizer. The options are
    those of `llava_mini.finetune.apply`.
    """
    memory = config.memory
    apply_memory_options(
        model,
        activation_checkpointing=memory.activation_checkpointing,
        loss_chunk=memory.loss_chunk,
        vision_batch=memory.vision_batch,
        offload_vision=memory.offload_vision,
    )
    fine_tune(config, model, **options)
    with named_as({"learning_rates": "stage.learning_rates"}):
        stage: VLMStage = instantiate(
            config.stage,
            "stage",
            model=model,
            kinds=config.data.kinds,
            report_dir=config.run_dir,
            finetune=config.finetune,
            optimizer=config.memory.optimizer,
            seed=config.seed,
            word_marks=None if tokenizer is None else word_marks(tokenizer, model.config.text_config.vocab_size),
        )
    finetune.cast_frozen(model, frozen_dtype(config))  # what the stage has frozen in addition
    return stage


def num_ranks(config: Config) -> int:
    """Return the number of processes that train together, on all machines."""
    return int(config.trainer.devices * config.trainer.num_nodes)


def uses_gpu(config: Config) -> bool:
    """Whether a run of this config trains on CUDA devices here."""
    return config.trainer.accelerator not in ("cpu", "mps") and torch.cuda.is_available()


def build_trainer(config: Config, datamodule: VLMDataModule, clock: Clock, loggers: list[Logger]) -> Trainer:
    """Build Lightning's Trainer for one run: one pass over the planned stream, checkpoints in `run_dir`/checkpoints."""
    trainer, run_dir = config.trainer, Path(config.run_dir)
    checkpoint = partial(
        ModelCheckpoint,
        dirpath=run_dir / "checkpoints",
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )
    callbacks: list[Callback] = [
        clock,
        StreamPosition(datamodule),
        Quarantine(run_dir, config.data.max_bad_fraction),
        History(run_dir / "history.jsonl"),
        Progress(),
        Validations(run_dir),
        checkpoint(filename="best", monitor="val/accuracy", mode="max"),
        checkpoint(filename="last", every_n_train_steps=trainer.checkpoint_every),
    ]
    if trainer.strategy == "fsdp":
        callbacks.append(Gathered())
    return make_trainer(
        config,
        callbacks=callbacks,
        logger=loggers or False,
        plugins=[AtomicCheckpointIO(), *_environment(config)],
        default_root_dir=run_dir,
        log_every_n_steps=10,
        val_check_interval=validation_interval(trainer) * config.accumulate,
    )


def validation_interval(trainer: TrainerConfig) -> int:
    """Return the optimizer steps between validations; by default a third of the run, which `convergence` uses.

    A third is rounded to the nearest: rounded up, the second validation of 100 steps would come after two thirds.
    """
    every = trainer.val_every or max(round(trainer.steps / 3), 1)
    return min(every, trainer.steps)


def make_trainer(config: Config, **options: Any) -> Trainer:
    """Build Lightning's Trainer with what all training here has in common, and with options of one training."""
    # Lightning sets its loggers to INFO when it is imported; its messages there do not help a user of this program.
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")  # frozen parts, on purpose
    warnings.filterwarnings("ignore", message=r"It is recommended to use `self\.log\('val/")  # of all ranks already
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # a resumed run
    warnings.filterwarnings("ignore", message="The dirpath has changed")  # a run's folder may be moved
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable")  # `StreamPosition` resumes it
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is dep")  # Lightning's call of torch
    spec = config.trainer
    on_gpu = uses_gpu(config)
    _check_hardware(spec, on_gpu=on_gpu)
    return Trainer(
        max_steps=spec.steps,
        max_epochs=1,
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=spec.gradient_clip_val,
        precision=spec.precision,
        accelerator=spec.accelerator,
        devices=spec.devices,
        num_nodes=spec.num_nodes,
        strategy=build_strategy(config.trainer, num_ranks(config)),
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=sys.stderr.isatty(),
        use_distributed_sampler=False,
        deterministic="warn" if on_gpu else True,  # CUDA has no deterministic form of some backward passes (pooling)
        **options,
    )


def _check_hardware(spec: TrainerConfig, *, on_gpu: bool) -> None:
    """Refuse devices that do not exist, and GPUs that the installed torch cannot use."""
    if spec.accelerator in ("gpu", "cuda") and not on_gpu:
        raise refused("trainer.accelerator", spec.accelerator, "torch finds no GPU here", allowed="auto, cpu")
    _check_devices(spec.devices, spec.accelerator, on_gpu)
    for card in find_cards()[: spec.devices] if on_gpu else ():
        check_card(card, torch.cuda.get_arch_list(), spec.precision)


def _check_devices(devices: int, accelerator: str, on_gpu: bool) -> None:
    """Refuse more ranks than there are devices; a CPU is shared by any number."""
    on_mps = accelerator != "cpu" and not on_gpu and torch.backends.mps.is_available()
    found = torch.cuda.device_count() if on_gpu else 1 if on_mps else devices
    if devices > found:
        reason = f"torch finds {found} here; more are allowed with accelerator=cpu"
        raise refused("trainer.devices", devices, reason)


def _environment(config: Config) -> list[ClusterEnvironment]:
    """Return how ranks find each other: by what this program or torchrun has set, never a batch system's variables.

    Raises:
        UserError: there are more or fewer ranks than the config says.
    """
    ranks = num_ranks(config)
    if (begun := int(os.environ.get("WORLD_SIZE", ranks))) != ranks:
        why = f"trainer.devices x trainer.num_nodes are {ranks} processes, but {begun} were begun"
        raise UserError(why, key="trainer.devices", value=config.trainer.devices)
    return [LightningEnvironment()] if ranks > 1 and "TORCHELASTIC_RUN_ID" not in os.environ else []


def build_strategy(trainer: TrainerConfig, ranks: int) -> Strategy | str:
    """Return Lightning's strategy for a run of so many ranks.

    Each rank has the whole model (DDP), or a shard of every weight (FSDP2, by Lightning's ModelParallelStrategy). That
    shards each parameter by itself, so frozen weights in half precision may be next to trained ones in full precision,
    and gradients are clipped by their norm as usual; Lightning's FSDPStrategy refuses both.

    With FSDP a checkpoint is one file as without: the ranks' shards are gathered in rank 0's host memory, and what does
    not train is left out. So a run may resume with another number of ranks, and everything reads its checkpoints like
    any others.
    """
    timeout = timedelta(seconds=trainer.rank_timeout)
    if trainer.strategy == "fsdp":
        return ModelParallelStrategy(
            data_parallel_size=ranks, tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=timeout
        )
    # A rank whose batch contains no image leaves the projector and all that is read through it unused.
    return DDPStrategy(find_unused_parameters=True, timeout=timeout) if ranks > 1 else "auto"
