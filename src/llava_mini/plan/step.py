"""One training step as in Lightning, and one answer as in `generate`, recorded in a ledger.

The same functions run on fake tensors (a plan) and on real tensors (calibration).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from llava_mini.batch import VLMBatch
from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.plan.fake_tensors import FakeTensor
from llava_mini.plan.fakes import as_on_gpu
from llava_mini.plan.ledger import BACKWARD, FORWARD, GRADIENTS, OPTIMIZER, SETUP, UPDATE, Ledger
from llava_mini.stages.accumulation import scale_gradients

if TYPE_CHECKING:  # a plan also works without Lightning installed
    from llava_mini.stages.base import VLMStage


@dataclass(frozen=True)
class Mode:
    """Settings of a training step."""

    autocast: torch.dtype | None = None  # type of mixed precision; None: none
    on_gpu: bool = False  # whether operators store what they store on CUDA
    clip: float | None = None  # largest norm of the gradients; None: any
    accumulate: int = 1  # batches in an optimizer step

    def kernels(self) -> AbstractContextManager[None]:
        """Context in which operators use memory as on the device."""
        return as_on_gpu() if self.on_gpu else nullcontext()

    @contextmanager
    def mixed(self) -> Iterator[None]:
        """Context of mixed precision, for a forward pass."""
        if self.autocast is None:
            yield
            return
        before = torch.is_autocast_enabled("cuda")
        torch.set_autocast_enabled("cuda", self.on_gpu)  # which PEFT checks
        try:
            with torch.autocast("cpu", dtype=self.autocast):
                yield
        finally:
            torch.set_autocast_enabled("cuda", before)


def training_step(
    stage: VLMStage, optimizer: torch.optim.Optimizer, batch: VLMBatch, mode: Mode, ledger: Ledger
) -> None:
    """Run forward, backward, clip, update. Gradients of the last step stay until the backward pass, as in Lightning.

    With accumulation the batch is not the first of its step: the gradients before it are scaled (`StepMean`).
    """
    with mode.kernels():
        ledger.enter(FORWARD)
        with mode.mixed():
            loss, _ = stage.forward_loss(batch)
        if mode.accumulate > 1:
            scale_gradients(optimizer, 0.5)
        ledger.enter(BACKWARD)
        if mode.accumulate == 1:
            optimizer.zero_grad()
        loss.backward()
        del loss
        note_gradients(stage, ledger)
        ledger.enter(UPDATE)
        if mode.clip is not None:
            nn.utils.clip_grad_norm_([p for p in stage.parameters() if p.requires_grad], mode.clip, foreach=mode.on_gpu)
        optimizer.step()
        note_state(optimizer, ledger)
        ledger.enter(SETUP)


def settle(stage: VLMStage, optimizer: torch.optim.Optimizer, mode: Mode, ledger: Ledger) -> None:
    """Make gradients and optimizer state as they are after the first step, without running a step."""
    ledger.enter(UPDATE)
    for parameter in stage.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)
    note_gradients(stage, ledger)
    with mode.kernels():
        optimizer.step()
    note_state(optimizer, ledger)
    ledger.enter(SETUP)


def note_gradients(stage: VLMStage, ledger: Ledger) -> None:
    """Count the gradients in the ledger as gradients."""
    for parameter in stage.parameters():
        if parameter.grad is not None:
            ledger.note(storage_of(parameter.grad), GRADIENTS)


def note_state(optimizer: torch.optim.Optimizer, ledger: Ledger) -> None:
    """Count what the optimizer stores in the ledger as optimizer state."""
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                ledger.note(storage_of(value), OPTIMIZER)


def storage_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor whose storage is in the ledger."""
    return tensor.meta if isinstance(tensor, FakeTensor) else tensor


@torch.no_grad()
def answering(
    model: LlavaMiniForConditionalGeneration, batch: VLMBatch, new_tokens: int, mode: Mode, ledger: Ledger
) -> None:
    """Run the prefill, and the last of `new_tokens` decoding steps, when the KV cache is longest."""
    ledger.enter(FORWARD)
    inputs = {name: tensor for name, tensor in batch.model_inputs().items() if name not in ("labels", "turn_ids")}
    with mode.kernels(), mode.mixed():
        outputs = model(**inputs, use_cache=True, logits_to_keep=1)
        cache = outputs.past_key_values
        del outputs
        if new_tokens > 1:
            for index, layer in enumerate(cache.layers):
                shape = (*layer.keys.shape[:2], new_tokens - 1, layer.keys.shape[3])
                keys, values = layer.keys.new_empty(shape), layer.values.new_empty(shape)
                cache.update(keys, values, index)
        size, length = len(batch), batch.input_ids.shape[1] + new_tokens
        model(
            input_ids=torch.ones(size, 1, dtype=torch.long),
            attention_mask=torch.ones(size, length, dtype=torch.long),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    ledger.enter(SETUP)
