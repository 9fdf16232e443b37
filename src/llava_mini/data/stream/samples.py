"""Reads samples from their shards into tensors (tokens, and pixels or features in their place) and collates them.

In a batch, texts are padded on the right, the frames of all samples are concatenated. Frames with fewer views than
others (video frames next to high-resolution images) are padded with views of zeros.

Shapes: F frames of the sample, V views of a frame, N patches of a view, Dv vision width, S x S pixels of a view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llava_mini.batch import IGNORE, BadSample, VLMBatch
from llava_mini.data.features.store import FeatureStore
from llava_mini.data.format.index import image_names
from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.stream.order import permutation
from llava_mini.data.stream.pixels import PixelTransform
from llava_mini.data.text.conversation import parse_record
from llava_mini.data.text.labels import ConversationTokenizer, TokenizedSample
from llava_mini.errors import SampleError, UserError


@dataclass(frozen=True)
class Sample:
    """A sample as `collate` needs it; `kinds`, of its answered turns, are empty where the data names none.

    It has pixels, uint8 [F, V, 3, S, S], or features, float32 [F, V, N, Dv], or neither if it is text only.
    """

    key: str
    tokens: TokenizedSample
    kinds: list[str]
    pixels: Tensor | None = None
    features: Tensor | None = None


@dataclass(frozen=True)
class Undecoded:
    """A sample whose images are not decoded yet."""

    sample: Sample
    images: list[bytes]
    is_video: bool


def placeholder(key: str, pad_token_id: int) -> Sample:
    """Return a replacement for a sample that cannot be used: one token that everything ignores, no frame, no label."""
    return Sample(key, TokenizedSample(torch.tensor([pad_token_id]), torch.tensor([IGNORE]), None), [])


class SampleReader:
    """Reads samples of a shard set by number; images whose features are given are neither read nor decoded.

    Of a video with more than `max_frames` frames, those in the middle of so many equal segments are taken. With
    `shuffle_frames`, the frames of videos come in random order, always the same for the same sample. What a model loses
    by this, it had learned from the order of the frames.

    Raises:
        UserError: Both or neither of transform and features are given, or the features are of other shards.
    """

    def __init__(
        self,
        shards: ShardSet,
        tokenize: ConversationTokenizer,
        *,
        transform: PixelTransform | None = None,
        features: FeatureStore | None = None,
        max_frames: int | None = None,
        shuffle_frames: bool = False,
    ) -> None:
        if (transform is None) == (features is None):
            raise UserError("samples need either an image transform or a feature store, and not both", key="transform")
        if features is not None and features.data_fingerprint != shards.fingerprint:
            raise UserError(f"the features in {features.folder} were not made from {shards.folder}", key="features")
        if max_frames is not None and max_frames < 1:
            why = f"max_frames={max_frames} of a video; it must be at least 1"
            raise UserError(why, key="max_frames", value=max_frames, allowed="at least 1")
        self.shards, self.tokenize, self.transform, self.features = shards, tokenize, transform, features
        self.max_frames, self.shuffle_frames = max_frames, shuffle_frames

    def __call__(self, index: int) -> Sample:
        """Return sample `index`.

        Raises:
            SampleError: The sample cannot be used.
        """
        return self.finished(self.draft(index))

    def draft(self, index: int) -> Undecoded:
        """Return sample `index` without decoding its images.

        Raises:
            SampleError: The sample cannot be used.
        """
        key, stored = self.shards.key(index), self.shards.frames(index)
        with_pixels = stored > 0 and self.transform is not None
        members = self.shards.read(index) if with_pixels else {"json": self.shards.read_record(index)}
        if "json" not in members:
            raise SampleError("it has no json member")
        conversation = parse_record(members["json"])
        conversation.check_files(stored)
        if conversation.is_video and not stored:
            raise SampleError("a video without frames")
        chosen = self._frames(key, stored) if conversation.is_video else list(range(stored))
        images, features, num_views = [], None, 1
        if stored and self.features is not None:
            features = self.features.read(index)[chosen]
            num_views = features.shape[1]
        elif stored and self.transform is not None:
            names = image_names(members)
            images = [members[names[frame]] for frame in chosen]
            num_views = self.transform.views_of_frame(conversation.is_video)
        tokens = self.tokenize(conversation, [len(chosen)] if conversation.is_video else [1] * stored, num_views)
        sample = Sample(key, tokens, conversation.kinds[: tokens.num_turns], features=features)
        return Undecoded(sample, images, conversation.is_video)

    def finished(self, draft: Undecoded) -> Sample:
        """Return a sample with its pixels, if it has images.

        Raises:
            SampleError: An image cannot be decoded.
        """
        if self.transform is None or not draft.images:
            return draft.sample
        return replace(draft.sample, pixels=self.transform(draft.images, draft.is_video))

    def _frames(self, key: str, stored: int) -> list[int]:
        """Return which of a video's frames are shown, in order.

        Example: of 10 frames with max_frames=4, the middles of four segments of 2.5 frames: 1, 3, 6, 8.
        """
        count = min(stored, self.max_frames or stored)
        frames = [(2 * segment + 1) * stored // (2 * count) for segment in range(count)]
        return [frames[place] for place in permutation(count, key).tolist()] if self.shuffle_frames else frames


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
