"""One sample from its shard to tensors: record and tokens, and pixels or the features that stand for them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from llava_mini.data.conversation import parse_record
from llava_mini.data.errors import SampleError
from llava_mini.data.feature_store import FeatureStore
from llava_mini.data.images import IMAGE_EXTENSIONS, pixels_of
from llava_mini.data.labels import ConversationTokenizer, TokenizedSample
from llava_mini.data.shards import ShardSet
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
        image = next((name for name in IMAGE_EXTENSIONS if name in self.shards.extensions(index)), None)
        wanted = ["json"] if image is None or self.features is not None else ["json", image]
        members = self.shards.read(index, wanted)
        if "json" not in members:
            raise SampleError("it has no json member")
        conversation = parse_record(members["json"])
        tokens = self.tokenize(conversation, [] if image is None else [1])
        pixels = features = None
        if image is not None and self.features is not None:
            features = self.features.read(index)[None]
        elif image is not None and self.transform is not None:
            pixels = pixels_of(members[image], self.transform)[None]
        return Sample(self.shards.keys[index], tokens, conversation.kinds, pixels, features)
