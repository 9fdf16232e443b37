"""Batches of random samples for the smallest model, and a trainer that only trains."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from tests.stages.noting import ALL_RATES
from torch.utils.data import DataLoader

from llava_mini.batch import VLMBatch
from llava_mini.data.stream.samples import collate as collate_samples
from llava_mini.data.stream.samples import placeholder
from llava_mini.stages.instruction import InstructionStage


@pytest.fixture(scope="session")
def make_batch(make_sample: Callable, collate: Callable) -> Callable[..., VLMBatch]:
    """make_batch(model, seeds, frames=1, answers={seed: tokens}): samples; no seeds: a batch of a placeholder.

    Answers have three tokens where nothing else is said.
    """

    def make(
        model: Any, seeds: Sequence[int], frames: int = 1, answers: Mapping[int, int] = MappingProxyType({})
    ) -> VLMBatch:
        if not seeds:
            return collate_samples([placeholder("bad", 0)], 0)
        tensors = {"num_frames": torch.zeros(len(seeds), dtype=torch.int64)}
        tensors |= collate(model, [make_sample(seed, frames, answer=answers.get(seed, 3)) for seed in seeds])
        return VLMBatch(**tensors, keys=[f"sample-{seed}" for seed in seeds], kinds=[[] for _ in seeds])

    return make


@pytest.fixture
def make_stage(make_model: Callable[..., Any]) -> Callable[..., InstructionStage]:
    """make_stage(rates, mode=True, **options): an instruction stage for a fresh model in that mode, without warm-up."""

    def make(rates: dict[str, float | None] | None = None, mode: bool = True, **options: Any) -> InstructionStage:
        arguments = {"learning_rates": rates or ALL_RATES, "warmup_ratio": 0.0, **options}
        return InstructionStage(model=make_model().train(mode), **arguments)

    return make


@pytest.fixture(scope="session")
def fit() -> Callable[..., Trainer]:
    """fit(module, batches, val=[...], **options of the Trainer): one pass on the CPU; gives the trainer."""

    def run(module: LightningModule, batches: Sequence[Any], val: Sequence[Any] = (), **options: Any) -> Trainer:
        quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
        steps = len(batches) // options.get("accumulate_grad_batches", 1)
        trainer = Trainer(
            **{**quiet, "max_steps": steps, "max_epochs": 1, "accelerator": "cpu", "num_sanity_val_steps": 0, **options}
        )
        train_loader: DataLoader[Any] = DataLoader(list(batches), batch_size=None)
        val_loader: DataLoader[Any] = DataLoader(list(val), batch_size=None)
        trainer.fit(module, train_loader, val_loader if val else None)
        return trainer

    return run
