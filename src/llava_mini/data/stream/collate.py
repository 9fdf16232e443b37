"""Collates samples into a VLMBatch: texts are padded on the right, the frames of all samples are concatenated.

Frames with fewer views than others (video frames next to high-resolution images) are padded with views of zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llava_mini.batch import BadSample, VLMBatch
from llava_mini.data.stream.samples import Sample
from llava_mini.data.text.labels import IGNORE


def collate(
    samples: Sequence[Sample], pad_token_id: int, *, position: int = 0, skipped: Sequence[BadSample] = ()
) -> VLMBatch:
    """Return a batch of samples, at least one, in which text, images and videos may be mixed.

    Their frames are all pixels or all features, and their turns are all handled in the same way. Placeholder samples,
    which replace the `skipped` ones, can be mixed with any. `position` is the first one after this batch.
    """
    lengths = torch.tensor([len(sample.tokens) for sample in samples], dtype=torch.int64)
    frames = [sample.pixels if sample.features is None else sample.features for sample in samples]
    return VLMBatch(
        input_ids=_padded([sample.tokens.input_ids for sample in samples], pad_token_id),
        attention_mask=(torch.arange(int(lengths.max())) < lengths[:, None]).long(),
        labels=_padded([sample.tokens.labels for sample in samples], IGNORE),
        num_frames=torch.tensor([0 if each is None else len(each) for each in frames], dtype=torch.int64),
        pixel_values=_joined([sample.pixels for sample in samples]),
        image_features=_joined([sample.features for sample in samples]),
        num_views=_num_views([each for each in frames if each is not None]),
        turn_ids=_turn_ids(samples),
        keys=[sample.key for sample in samples],
        kinds=[sample.kinds for sample in samples],
        position=position,
        truncated=sum(sample.tokens.truncated for sample in samples),
        skipped=list(skipped),
    )


def _turn_ids(samples: Sequence[Sample]) -> Tensor | None:
    """Return the turn ids; None when no sample has independent turns. A placeholder's token belongs to no turn."""
    if all(sample.tokens.turn_ids is None for sample in samples):
        return None
    rows = [sample.tokens.turn_ids for sample in samples]
    return _padded([torch.zeros(1, dtype=torch.int64) if row is None else row for row in rows], 0)


def _padded(rows: list[Tensor], fill: int) -> Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=fill)


def _joined(frames: list[Tensor | None]) -> Tensor | None:
    there = [each for each in frames if each is not None]
    most = max((each.shape[1] for each in there), default=0)
    return torch.cat([_with_views(each, most) for each in there]) if there else None


def _with_views(frames: Tensor, views: int) -> Tensor:
    """Pad frames [F, V, ...] to [F, views, ...]."""
    if frames.shape[1] == views:
        return frames
    return torch.cat([frames, frames.new_zeros(len(frames), views - frames.shape[1], *frames.shape[2:])], dim=1)


def _num_views(frames: list[Tensor]) -> Tensor | None:
    """Return the number of views of each frame of the batch; None when all frames have the same number."""
    if len({each.shape[1] for each in frames}) < 2:
        return None
    return torch.tensor([each.shape[1] for each in frames for _ in each], dtype=torch.int64)
