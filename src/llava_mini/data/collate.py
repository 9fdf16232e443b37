"""Samples to a VLMBatch: texts padded on the right, the frames of all samples one after another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llava_mini.batch import VLMBatch
from llava_mini.data.labels import IGNORE
from llava_mini.data.samples import Sample


def collate(samples: Sequence[Sample], pad_token_id: int, skipped: Sequence[str] = ()) -> VLMBatch:
    """A batch of `samples`; when all were skipped, one of no rows (B = 0).

    Args:
        samples: All with pixels, all with features, or without images; all of one way to treat turns.
        pad_token_id: Fills `input_ids`.
        skipped: "key: reason" of samples that are missing.
    """
    lengths = torch.tensor([len(sample.tokens) for sample in samples], dtype=torch.int64)
    longest = int(lengths.max()) if len(samples) else 0
    turn_ids = [sample.tokens.turn_ids for sample in samples if sample.tokens.turn_ids is not None]
    frames = [sample.pixels if sample.features is None else sample.features for sample in samples]
    return VLMBatch(
        input_ids=_padded([sample.tokens.input_ids for sample in samples], pad_token_id),
        attention_mask=(torch.arange(longest) < lengths[:, None]).long(),
        labels=_padded([sample.tokens.labels for sample in samples], IGNORE),
        num_frames=torch.tensor([0 if each is None else len(each) for each in frames], dtype=torch.int64),
        pixel_values=_joined([sample.pixels for sample in samples]),
        image_features=_joined([sample.features for sample in samples]),
        turn_ids=_padded(turn_ids, 0) if turn_ids else None,
        keys=[sample.key for sample in samples],
        kinds=[sample.kinds for sample in samples],
        skipped=list(skipped),
    )


def _padded(rows: list[Tensor], fill: int) -> Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=fill) if rows else torch.zeros(0, 0, dtype=torch.int64)


def _joined(frames: list[Tensor | None]) -> Tensor | None:
    there = [each for each in frames if each is not None]
    return torch.cat(there) if there else None
