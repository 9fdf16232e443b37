"""A sample has pixels or features, never both, and with features its image is not touched."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llava_mini.data import samples
from llava_mini.data.conversation import parse_record
from llava_mini.data.errors import SampleError
from llava_mini.data.feature_store import FeatureRecipe, FeatureStore
from llava_mini.data.images import pixels_of
from llava_mini.data.labels import ConversationTokenizer
from llava_mini.data.samples import SampleReader
from llava_mini.data.shards import ShardSet
from llava_mini.errors import UserError
from llava_mini.views import ImageTransform

MakeShards = Callable[..., ShardSet]
MakeMembers = Callable[..., dict[str, bytes]]


def rows(pixels: Tensor) -> Tensor:
    """Stands for a vision tower: [n, V, 3, H, W] to [n, V, H, W], each row a patch."""
    return pixels.mean(2)


@pytest.fixture
def features(make_shards: MakeShards, tmp_path: Path, transform: ImageTransform) -> tuple[ShardSet, FeatureStore]:
    shards = make_shards(5)
    recipe = FeatureRecipe("rows", (1, 32, 32), "float32")
    return shards, FeatureStore.build(tmp_path / "features", shards, rows, recipe, transform)


def test_a_sample_is_its_record_and_pixels(
    make_shards: MakeShards, tokenize: ConversationTokenizer, transform: ImageTransform
) -> None:
    shards = make_shards(5)
    sample = SampleReader(shards, tokenize, transform=transform)(3)
    assert sample.key == "03"
    assert sample.pixels is not None
    assert torch.equal(sample.pixels[0], pixels_of(shards.read(3)["png"], transform))
    assert sample.features is None
    assert len(sample.tokens) == len(tokenize(parse_record(shards.read(3)["json"]), [1]))


def test_with_features_the_image_is_not_touched(
    features: tuple[ShardSet, FeatureStore],
    tokenize: ConversationTokenizer,
    transform: ImageTransform,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shards, store = features
    direct = SampleReader(shards, tokenize, transform=transform)(2)
    read: list[str] = []
    original = ShardSet.read_record

    def spy(self: ShardSet, index: int) -> bytes:
        read.append("json")
        return original(self, index)

    def never(raw: bytes, transform: ImageTransform) -> None:
        pytest.fail("the image was decoded")

    monkeypatch.setattr(ShardSet, "read_record", spy)
    monkeypatch.setattr(samples, "pixels_of", never)
    sample = SampleReader(shards, tokenize, features=store)(2)
    assert read == ["json"]
    assert sample.pixels is None
    assert sample.features is not None
    assert direct.pixels is not None
    assert torch.equal(sample.features, rows(direct.pixels))


def test_a_text_only_sample_has_neither(
    make_shards: MakeShards, members: MakeMembers, tokenize: ConversationTokenizer, transform: ImageTransform
) -> None:
    text = members(1, [("where is the star", "no")], image=False)
    sample = SampleReader(make_shards(3, {1: text}), tokenize, transform=transform)(1)
    assert sample.pixels is None
    assert sample.features is None


def test_kinds_come_from_the_record(
    make_shards: MakeShards, members: MakeMembers, tokenize: ConversationTokenizer, transform: ImageTransform
) -> None:
    reader = SampleReader(make_shards(2, {1: members(1, kinds=["color", "count"])}), tokenize, transform=transform)
    assert [reader(0).kinds, reader(1).kinds] == [[], ["color", "count"]]


def test_bad_samples_say_why(
    make_shards: MakeShards, members: MakeMembers, tokenize: ConversationTokenizer, transform: ImageTransform
) -> None:
    whole = members(0)
    changes = {
        0: {**whole, "png": whole["png"][:200]},
        1: {**whole, "json": b"{"},
        2: {"png": whole["png"]},
        3: {"json": whole["json"]},
        4: members(4, [("where is the star", "no")]),
        5: {**whole, "json": json.dumps({"conversations": 3}).encode()},
    }
    reader = SampleReader(make_shards(7, changes), tokenize, transform=transform)
    reasons = ["image cannot be decoded", "not a LLaVA record", "no json member", "1 <image> for 0 images",
               "0 <image> for 1 images", "not a LLaVA record"]  # fmt: skip
    for index, reason in enumerate(reasons):
        with pytest.raises(SampleError, match=reason):
            reader(index)
    assert reader(6).key == "06"


def test_impossible_readers_are_refused(
    features: tuple[ShardSet, FeatureStore],
    make_shards: MakeShards,
    tokenize: ConversationTokenizer,
    transform: ImageTransform,
) -> None:
    shards, store = features
    with pytest.raises(UserError, match="either an image transform or a feature store"):
        SampleReader(shards, tokenize)
    with pytest.raises(UserError, match="not both"):
        SampleReader(shards, tokenize, transform=transform, features=store)
    with pytest.raises(UserError, match="were not made from"):
        SampleReader(make_shards(4, name="other"), tokenize, features=store)
