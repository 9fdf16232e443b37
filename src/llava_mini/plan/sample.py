"""Batch that a plan assumes: samples of a given length, with the frames and views of the config."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llava_mini.batch import IGNORE, VLMBatch
from llava_mini.errors import UserError
from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.plan.fake_tensors import LARGEST_REAL

_MOST = 1024  # samples; planning a step of more takes longer than seconds


@dataclass(frozen=True)
class Sample:
    """Description of every sample of the batch."""

    text_tokens: int = 300  # without placeholders; the second half of them is supervised
    frames: int = 1  # one for an image, several for a video
    views: int = 1  # of each frame: 1, or 5 in high resolution
    stored_features: bool = False  # read, so that the vision tower has nothing to do
    independent_turns: bool = False  # turns that do not attend to each other, so that a mask is made

    @property
    def supervised_tokens(self) -> int:
        """Number of supervised tokens, which are answers."""
        return self.text_tokens // 2


def largest_planned(model: LlavaMiniForConditionalGeneration, sample: Sample) -> int:
    """Number of samples in the largest batch that is run; its entries are real numbers, which must fit in memory.

    Raises:
        UserError: if a sample is so long that a batch of four is too large.
    """
    patches_and_text = sample.frames * (sample.views * model.side**2 + sample.text_tokens)
    entries = sample.text_tokens + patches_and_text + model.layout.frames(sample.frames, sample.views)
    if entries > LARGEST_REAL // 4:
        raise UserError(
            f"{sample.text_tokens} text tokens, each read with {sample.frames} frames, cannot be planned; allowed are "
            f"samples of up to {LARGEST_REAL // 4} entries, this one has {entries}"
        )
    return min(_MOST, LARGEST_REAL // entries)


def batch_of(model: LlavaMiniForConditionalGeneration, sample: Sample, size: int) -> VLMBatch:
    """Return a batch of `size` samples; the last of several is a token shorter, so that there is padding as usual."""
    placeholders = model.layout.frames(sample.frames, sample.views)
    length = placeholders + sample.text_tokens
    ids = torch.ones(size, length, dtype=torch.long)
    ids[:, :placeholders] = model.config.image_token_id
    labels = ids.clone()
    labels[:, : length - sample.supervised_tokens] = IGNORE
    mask = torch.ones_like(ids)
    if size > 1:
        mask[-1, -1], labels[-1, -1] = 0, IGNORE
    frames, vision = size * sample.frames, model.config.vision_config
    pixels = features = None
    if sample.frames and sample.stored_features:
        features = torch.zeros(frames, sample.views, model.side**2, vision.hidden_size)
    elif sample.frames:
        pixels = torch.zeros(frames, sample.views, 3, vision.image_size, vision.image_size)
    return VLMBatch(
        input_ids=ids,
        attention_mask=mask,
        labels=labels,
        num_frames=torch.full((size,), sample.frames),
        pixel_values=pixels,
        image_features=features,
        turn_ids=(torch.arange(length) >= placeholders).long().repeat(size, 1) if sample.independent_turns else None,
    )
