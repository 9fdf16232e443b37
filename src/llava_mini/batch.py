"""VLMBatch: the one batch structure that the data code produces and the models read.

All frames of a batch (from images, HD images and videos) are concatenated in one tensor. `num_frames` gives how many
belong to each sample. So a batch can mix them freely, and the vision tower runs once per batch.

Shapes: B samples, T tokens, F frames in the whole batch, V views per frame, N patches per view, Dv vision width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

IGNORE = -100  # label of a token that is not predicted


class BadSample(NamedTuple):
    """A sample that cannot be used. Its row in the batch has no frame and no label.

    Attributes:
        key: Key of the sample, in the form of `VLMBatch.keys`.
        shard: File name of the shard.
        reason: Description of what is wrong with the sample.
        position: Position of the sample in the training order.
    """

    key: str
    shard: str
    reason: str
    position: int


@dataclass
class VLMBatch:
    """A batch of image, video and text-only samples.

    A sample that cannot be used still takes a row: one token, no frame, no label. So every batch has its full size, and
    no other sample takes its place.

    Attributes:
        input_ids: Token ids, [B, T] int64; each `<image>` is already K placeholder ids per frame (K compressed tokens).
        attention_mask: Mask of real tokens, [B, T] int64; 0 is padding.
        labels: Target token ids, [B, T] int64; -100 where nothing is to be predicted.
        num_frames: Number of frames of each sample, [B] int64; 0 for a text-only sample; sums to F.
        pixel_values: Pixels of the views, [F, V, 3, H, W], or None when features are given or no sample has an image;
            uint8 until they are normalized on the model's device.
        image_features: Precomputed features of the frozen vision tower, [F, V, N, Dv]; used instead of pixel_values.
        num_views: Number of real views among the V of each frame, [F] int64 (the rest is padding); None: all are real.
        turn_ids: Turn of each token, [B, T] int64: 0 for tokens that every turn attends to, i for the i-th independent
            turn; None: one conversation.
        keys: Keys of the samples in their shards; prefixed with the name of their shard set where several are read.
        kinds: Kinds of the answered turns of each sample, in order; empty where the data names none.
        position: First position in the training order after this batch and the other ranks' batches with the same
            number.
        truncated: Number of samples that were cut to the maximum length.
        skipped: Samples that could not be used, whose rows are empty, in order.
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
        """Return the tensors that are set, as keyword arguments of `LlavaMiniForConditionalGeneration`."""
        return {f.name: value for f in fields(self) if isinstance(value := self.__dict__[f.name], Tensor)}

    def num_supervised(self) -> int:
        """Return the number of rows with at least one supervised token."""
        return int((self.labels != IGNORE).any(1).sum())

    def to(self, device: torch.device | str) -> VLMBatch:
        """Return this batch with every tensor on `device`. Copies from page-locked memory are not waited for."""
        on_gpu = torch.device(device).type == "cuda"
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=on_gpu))

    def pin_memory(self) -> VLMBatch:
        """Return this batch in page-locked memory. torch's data loaders call this method."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> VLMBatch:
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in self.model_inputs().items()}
        return replace(self, **changed)

    def __len__(self) -> int:
        return len(self.input_ids)
