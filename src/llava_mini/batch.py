"""VLMBatch: the one structure that the data room makes and the models read.

All frames of a batch (of images, HD images and videos alike) lie one after another in one tensor and `num_frames` says
how many belong to each sample, so any mixture fits in a batch and the vision tower runs once for it.

Shapes: B samples, T tokens, F frames of the whole batch, V views of a frame, N patches of a view, Dv vision width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor


class BadSample(NamedTuple):
    """A sample that cannot be used; its row in the batch has no frame and no label.

    Attributes:
        key: As in `VLMBatch.keys`.
        shard: The file name of the shard.
        reason: What is wrong with it.
        position: Its place in the order of training.
    """

    key: str
    shard: str
    reason: str
    position: int


@dataclass
class VLMBatch:
    """A batch of image, video and text-only samples.

    A sample that cannot be used is a row all the same: one token, no frame, no label. So every batch has its size, and
    no sample stands for another.

    Attributes:
        input_ids: [B, T] int64; every `<image>` is already K placeholder ids a frame (K compressed tokens).
        attention_mask: [B, T] int64; 0 is padding.
        labels: [B, T] int64; -100 where nothing is to be predicted.
        num_frames: [B] int64; frames of each sample, 0 for a text-only one; sums to F.
        pixel_values: [F, V, 3, H, W], or None when features are given or no sample has an image; uint8 until they are
            normalised, where the model runs.
        image_features: [F, V, N, Dv] features of the frozen vision tower, computed before; instead of pixel_values.
        num_views: [F] int64, how many of the V views are real (the rest is padding); None: all.
        turn_ids: [B, T] int64, 0 for what every turn sees, i for the i-th independent turn; None: one conversation.
        keys: the samples' keys in their shards; with the name of their set where several are read.
        kinds: for every sample the kinds of its answered turns, in order; empty where the data names none.
        position: The first position in the order of training that neither this batch nor those of the other ranks
            with its number hold.
        truncated: How many samples were shortened to the longest that is allowed.
        skipped: The rows that are no sample, in order.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    num_frames: Tensor
    pixel_values: Tensor | None = None
    image_features: Tensor | None = None
    num_views: Tensor | None = None
    turn_ids: Tensor | None = None
    keys: list[str] = field(default_factory=list)
    kinds: list[list[str]] = field(default_factory=list)
    position: int = 0
    truncated: int = 0
    skipped: list[BadSample] = field(default_factory=list)

    def model_inputs(self) -> dict[str, Tensor]:
        """The tensors that are there, as keyword arguments of `LlavaMiniForConditionalGeneration`."""
        return {f.name: value for f in fields(self) if isinstance(value := self.__dict__[f.name], Tensor)}

    def num_supervised(self) -> int:
        """Rows from which something is learnt."""
        return int((self.labels != -100).any(1).sum())

    def to(self, device: torch.device | str) -> VLMBatch:
        """The same batch with every tensor on `device`; from page-locked memory without waiting for the copies."""
        on_gpu = torch.device(device).type == "cuda"
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=on_gpu))

    def pin_memory(self) -> VLMBatch:
        """The same batch in page-locked memory; what torch's loaders ask for."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> VLMBatch:
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in self.model_inputs().items()}
        return replace(self, **changed)

    def __len__(self) -> int:
        return len(self.input_ids)
