"""One sample from its shard to tensors: record and tokens, and pixels or the features that stand for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llava_mini.data.conversation import parse_record
from llava_mini.data.errors import SampleError
from llava_mini.data.feature_store import FeatureStore
from llava_mini.data.images import pixels_of
from llava_mini.data.labels import ConversationTokenizer, TokenizedSample
from llava_mini.data.shards import ShardSet, picture_names
from llava_mini.errors import UserError
from llava_mini.views import ImageTransform


@dataclass(frozen=True)
class Sample:
    """What `collate` needs of a sample; `pixels` [F, V, 3, H, W] or `features` [F, V, N, Dv], neither without image."""

    key: str
    tokens: TokenizedSample
    kinds: list[str]
    pixels: Tensor | None = None
    features: Tensor | None = None


class SampleReader:
    """Reads samples of a shard set by number; an image whose features are given is neither read nor decoded.

    Args:
        shards: Where the samples lie.
        tokenize: What makes tokens of their conversations.
        transform: What makes pixels of their images; not needed when features are given.
        features: Features of the frozen vision tower, made from the same shards.

    Raises:
        UserError: both or neither of transform and features are given, or the features are of other shards.
    """

    def __init__(
        self,
        shards: ShardSet,
        tokenize: ConversationTokenizer,
        *,
        transform: ImageTransform | None = None,
        features: FeatureStore | None = None,
    ) -> None:
        if (transform is None) == (features is None):
            raise UserError("samples need either an image transform or a feature store, and not both")
        if features is not None and features.data_fingerprint != shards.fingerprint:
            raise UserError(f"the features in {features.folder} were not made from {shards.folder}")
        self.shards, self.tokenize, self.transform, self.features = shards, tokenize, transform, features

    def __call__(self, index: int) -> Sample:
        """Sample `index`.

        Raises:
            SampleError: it cannot be used.
        """
        frames = self.shards.frames(index)
        with_pixels = frames > 0 and self.transform is not None
        members = self.shards.read(index) if with_pixels else {"json": self.shards.read_record(index)}
        if "json" not in members:
            raise SampleError("it has no json member")
        conversation = parse_record(members["json"])
        tokens = self.tokenize(conversation, [1] * frames)
        pixels = features = None
        if frames and self.features is not None:
            features = self.features.read(index)[None]
        elif frames and self.transform is not None:
            pixels = torch.stack([pixels_of(members[name], self.transform) for name in picture_names(members)])
        return Sample(self.shards.key(index), tokens, conversation.kinds, pixels, features)
