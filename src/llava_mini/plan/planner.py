"""Planner, which runs a stage on a model of fake tensors and finds the memory of its step for any number of samples."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.plan.fake_tensors import FakeTensors, replace_weights
from llava_mini.plan.fakes import AdamW8bit, is_packed
from llava_mini.plan.ledger import FROZEN, QUANTIZED, Block, Ledger
from llava_mini.plan.sample import Sample, batch_of
from llava_mini.plan.step import Mode, answering, settle, storage_of, training_step

if TYPE_CHECKING:  # a plan also works without Lightning installed
    from llava_mini.stages.base import VLMStage


@dataclass(frozen=True)
class Peak:
    """Peak memory of a step."""

    bytes: int  # on the device
    breakdown: dict[str, int]  # of these bytes, by part
    host_bytes: int = 0  # in host memory in addition


class Planner:
    """Runs steps of one model on fake tensors.

    The stage's model was built on meta; afterwards the stage cannot be used for anything else.
    """

    def __init__(self, stage: VLMStage, mode: Mode, sample: Sample) -> None:
        self.stage, self.mode, self.sample = stage, mode, sample
        self.ledger = Ledger(self.model.config.text_config.vocab_size)
        self._on = FakeTensors(self.ledger)
        self._optimizer: torch.optim.Optimizer | None = None
        replace_weights(stage, self._on, _parts(stage))
        self._tower = _OffloadedTower(self.model, self.ledger)

    @property
    def model(self) -> LlavaMiniForConditionalGeneration:
        """Model of the stage."""
        return self.stage.model

    def use(self, optimizer: str) -> None:
        """Train with an optimizer of `memory.optimizer` from now on, with its state as after the first step."""
        for parameter in self.stage.parameters():
            parameter.grad = None
        self._optimizer = None
        groups = self.stage.parameter_groups()
        if optimizer == "adamw":
            self._optimizer = torch.optim.AdamW(groups, betas=self.stage.betas, foreach=self.mode.on_gpu)
        else:
            self._optimizer = AdamW8bit(groups, paged=optimizer == "paged_adamw_8bit")
        with self._on:
            settle(self.stage, self._optimizer, self.mode, self.ledger)

    def step(self, batch_size: int) -> Peak:
        """Return the peak of a training step that is not the first."""
        if self._optimizer is None:
            self.use(self.stage.optimizer)
        assert self._optimizer is not None
        with self._on, self._tower:
            batch = batch_of(self.model, self.sample, batch_size)
            self.ledger.begin()
            training_step(self.stage, self._optimizer, batch, self.mode, self.ledger)
            return self._peak(self._optimizer.host_bytes if isinstance(self._optimizer, AdamW8bit) else 0)

    def answer(self, batch_size: int, new_tokens: int) -> Peak:
        """Return the peak of answering: prefill and `new_tokens` tokens with a KV cache."""
        self.stage.eval()
        with self._on, self._tower:
            batch = batch_of(self.model, self.sample, batch_size)
            self.ledger.begin()
            answering(self.model, batch, new_tokens, self.mode, self.ledger)
            return self._peak(0)

    def _peak(self, host: int) -> Peak:
        peak = Peak(self.ledger.peak, self.ledger.breakdown(), host + self._tower.host_bytes)
        gc.collect()  # checkpointing leaves reference cycles, which must not count in the next step
        return peak


def _parts(stage: nn.Module) -> dict[int, str]:
    """Part of the ledger by id, for weights that are not counted by whether they train."""
    packed = [module for module in stage.modules() if is_packed(module)]
    return {
        id(tensor): QUANTIZED
        for module in packed
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        if name != "bias"
    }


class _OffloadedTower:
    """Counts a vision tower whose weights wait in host memory only while it encodes.

    Whether they do is checked at every step. `models.vision_tower` itself moves nothing if everything is on a CPU.
    """

    def __init__(self, model: LlavaMiniForConditionalGeneration, ledger: Ledger):
        self.model, self.ledger = model, ledger
        self.host_bytes = 0
        self._away: list[Block] = []
        self._there: Block | None = None
        model.vision_tower.register_forward_pre_hook(self._fetch)
        model.vision_tower.register_forward_hook(self._leave)

    def __enter__(self) -> None:
        weights = list(self.model.vision_tower.parameters())
        offloaded = self.model.offload_vision and not any(weight.requires_grad for weight in weights)
        self._away = [self.ledger.note(storage_of(weight)) for weight in weights] if offloaded else []
        self.host_bytes = sum(block.size for block in self._away)
        for block in self._away:
            self.ledger.drop(block)

    def __exit__(self, *_: object) -> None:
        for block in self._away:
            self.ledger.restore(block)

    def _fetch(self, *_: object) -> None:
        if self._away:
            self._there = self.ledger.add(self.host_bytes, FROZEN)

    def _leave(self, *_: object) -> None:
        if self._there is not None:
            self.ledger.drop(self._there)
            self._there = None
