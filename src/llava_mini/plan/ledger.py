"""Ledger of all storages that are allocated and freed while a step runs, and of what they are used for at the peak.

Sizes are rounded up to 512 bytes, as torch's allocator for CUDA does.
"""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Parts: what memory is used for.
FROZEN = "frozen_weights"
TRAINED = "trained_weights"
QUANTIZED = "quantized_weights"
GRADIENTS = "gradients"
OPTIMIZER = "optimizer_state"
ACTIVATIONS = "activations"
LOGITS = "logits"
CASTS = "weight_casts"
WORKSPACE = "workspace"
PARTS = (FROZEN, TRAINED, QUANTIZED, GRADIENTS, OPTIMIZER, ACTIVATIONS, LOGITS, CASTS, WORKSPACE)
_WEIGHTS = (FROZEN, TRAINED)

# Phases of a step.
SETUP, FORWARD, BACKWARD, UPDATE = "setup", "forward", "backward", "update"

_UNIT = 512


@dataclass(eq=False, slots=True)
class Block:
    """Storage in the ledger."""

    size: int  # bytes, rounded
    part: str  # what it is used for, from PARTS
    phase: str  # in which it was allocated
    born: int  # clock of the ledger when it was allocated
    died: int | None = None  # clock when it was freed; None while it exists


class Ledger:
    """Records storages by what they are used for; a tensor whose last dimension is `vocab_size` long is logits."""

    def __init__(self, vocab_size: int | None = None):
        self.vocab_size = vocab_size
        self.phase = SETUP
        self.current = self.peak = 0
        self._clock = self._peak_at = self._forward_end = 0
        self._blocks: list[Block] = []
        self._held: dict[int, tuple[Block, Any]] = {}

    def begin(self) -> None:
        """Forget freed storages and measure the peak from here on."""
        self._blocks = [block for block, _ in self._held.values()]
        self.peak, self._peak_at = self.current, self._clock

    def enter(self, phase: str) -> None:
        """Begin a phase of the step."""
        if self.phase == FORWARD:
            self._forward_end = self._clock
        self.phase = phase

    def note(self, tensor: Tensor, part: str | None = None) -> Block:
        """Return the block of a real or meta tensor's storage, counted from now on if it was not.

        `part` None: the part that the phase suggests, if the storage is new.
        """
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._held:
            block = self._held[key][0]
            if part is not None:
                block.part = part
            return block
        size = -(-storage.nbytes() // _UNIT) * _UNIT
        block = self.add(size, part or self._part_of(tensor))

        def freed(_: Any) -> None:
            del self._held[key]
            self.drop(block)

        self._held[key] = block, weakref.ref(storage, freed)
        return block

    def add(self, size: int, part: str) -> Block:
        """Count bytes that are used from now until `drop`."""
        self._clock += 1
        block = Block(size, part, self.phase, self._clock)
        self._blocks.append(block)
        self.current += size
        if self.current > self.peak:
            self.peak, self._peak_at = self.current, self._clock
        return block

    def drop(self, block: Block) -> None:
        """Count the bytes of a block as freed."""
        self._clock += 1
        block.died = self._clock
        self.current -= block.size

    def restore(self, block: Block) -> None:
        """Count the bytes of a dropped block again, as if they had never been dropped."""
        block.died = None
        self.current += block.size

    def is_weight(self, tensor: Tensor) -> bool:
        """Whether the tensor's storage is that of a weight."""
        held = self._held.get(tensor.untyped_storage()._cdata)
        return held is not None and held[0].part in _WEIGHTS

    def breakdown(self) -> dict[str, int]:
        """Bytes by part at the peak since `begin`; they sum to the peak."""
        found = Counter(dict.fromkeys(PARTS, 0))
        for block in self._blocks:
            if block.born <= self._peak_at and (block.died is None or block.died > self._peak_at):
                found[self._final_part(block)] += block.size
        return dict(found)

    def _part_of(self, tensor: Tensor) -> str:
        if self.vocab_size is not None and tensor.dim() > 1 and tensor.shape[-1] == self.vocab_size:
            return LOGITS
        # If gradients are enabled in the backward pass, activations are computed again (checkpointing).
        return ACTIVATIONS if self.phase in (SETUP, FORWARD) or torch.is_grad_enabled() else WORKSPACE

    def _final_part(self, block: Block) -> str:
        """Part of a block after the step: only what outlives the forward pass is an activation for backward."""
        passing = block.phase == FORWARD and block.died is not None and block.died <= self._forward_end
        return WORKSPACE if block.part == ACTIVATIONS and passing else block.part


class Watching(TorchDispatchMode):
    """Records the storages of real tensors in a ledger while it is active, but not memory used inside a kernel."""

    def __init__(self, ledger: Ledger):
        super().__init__()
        self.ledger = ledger

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        cast = is_cast(func) and self.ledger.is_weight(args[0])
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.ledger.note(leaf, CASTS if cast and not self.ledger.is_weight(leaf) else None)
        return out


def is_cast(func: Any) -> bool:
    """Whether an operator makes a copy in another type, as autocast does with weights."""
    return func is torch.ops.aten._to_copy.default
