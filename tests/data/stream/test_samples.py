"""A sample has pixels or features, never both, and of a video the frames that were asked for."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llava_mini.data.features.store import FeatureRecipe, FeatureStore
from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.stream.pixels import PixelTransform
from llava_mini.data.stream.samples import SampleReader, placeholder
from llava_mini.data.text.conversation import parse_record
from llava_mini.data.text.labels import ConversationTokenizer
from llava_mini.errors import SampleError, UserError

MakeShards = Callable[..., ShardSet]
MakeMembers = Callable[..., dict[str, bytes]]
MakeReader = Callable[..., SampleReader]
Png = Callable[[int], bytes]


@pytest.fixture
def read(make_shards: MakeShards, tokenize: ConversationTokenizer, to_pixels: PixelTransform) -> MakeReader:
    """read({i: members}, **options): a reader of samples 0, 1, ..., with pixels."""

    def make(changes: dict[int, dict[str, bytes]], **options: object) -> SampleReader:
        shards = make_shards(max(changes) + 2, changes)
        return SampleReader(shards, tokenize, transform=to_pixels, **options)

    return make


@pytest.fixture
def features(
    make_shards: MakeShards, clip: MakeMembers, tmp_path: Path, to_pixels: PixelTransform
) -> tuple[ShardSet, FeatureStore]:
    """Five samples, of them number 4 a video of 7 frames, and their features: the means of their colors."""
    shards = make_shards(5, {4: clip(4, 7)})
    recipe = FeatureRecipe("rows", (1, 32, 32), "float32")
    rows = lambda pixels: pixels.float().mean(2)  # noqa: E731 - stands for a vision tower
    return shards, FeatureStore.build(tmp_path / "features", shards, rows, recipe, to_pixels)


def frames_of(pixels: Tensor | None, png: Png, to_pixels: PixelTransform) -> list[int]:
    """Which pictures of `clip` these are."""
    known = to_pixels([png(100 + frame) for frame in range(40)])
    assert pixels is not None
    return [int((known == frame).flatten(1).all(1).nonzero()) for frame in pixels]


def test_a_sample_is_its_record_and_pixels(read: MakeReader, members: MakeMembers, to_pixels: PixelTransform) -> None:
    reader = read({3: members(3)})
    sample = reader(3)
    assert sample.key == "03"
    assert sample.pixels is not None
    assert sample.pixels.dtype == torch.uint8
    assert torch.equal(sample.pixels, to_pixels([members(3)["png"]]))
    assert sample.features is None
    assert len(sample.tokens) == len(reader.tokenize(parse_record(members(3)["json"]), [1]))


def test_a_file_that_was_never_stored_makes_no_sample_of_text(members: MakeMembers, read: MakeReader) -> None:
    record = members(1, [("where is the star", "no")], image=False, image_path="a.jpg")
    with pytest.raises(SampleError, match="^`image_path` is not read"):
        read({1: record})(1)


def test_several_images_have_their_places_in_the_text(
    read: MakeReader, members: MakeMembers, png: Png, to_pixels: PixelTransform
) -> None:
    turns = [("<image>\n<image>\nwhat color is the ring", "red"), ("how many star objects", "two")]
    record = members(0, turns, image=False, image_names=["a", "b"])
    several = {**record, "000000.png": png(1), "000001.png": png(2)}
    reader = read({0: several})
    sample = reader(0)
    assert torch.equal(sample.pixels, to_pixels([png(1), png(2)]))
    assert (sample.tokens.input_ids == reader.tokenize.image_token_id).sum() == 2 * 2  # two tokens an image


@pytest.mark.parametrize(
    ("max_frames", "expected"),
    [
        (None, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (12, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (10, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (4, [1, 3, 6, 8]),
        (3, [1, 5, 8]),
        (1, [5]),
    ],
)
def test_of_a_long_video_the_middles_of_equal_segments_are_taken(
    read: MakeReader, clip: MakeMembers, png: Png, to_pixels: PixelTransform,
    max_frames: int | None, expected: list[int],
) -> None:  # fmt: skip
    reader = read({0: clip(0)}, max_frames=max_frames)
    sample = reader(0)
    assert frames_of(sample.pixels, png, to_pixels) == expected
    assert (sample.tokens.input_ids == reader.tokenize.image_token_id).sum() == 2 * len(expected)


def test_shuffled_frames_are_the_same_frames_in_an_order_of_the_samples_own(
    read: MakeReader, clip: MakeMembers, members: MakeMembers, png: Png, to_pixels: PixelTransform
) -> None:
    turns = [("<image>\n<image>\nwhat color is the ring", "red")]
    images = {**members(3, turns, image=False), "000000.png": png(100), "000001.png": png(101)}
    reader = read({0: clip(0, 20), 1: clip(1, 20), 2: clip(2, 1), 3: images}, max_frames=10, shuffle_frames=True)
    orders = [frames_of(reader(i).pixels, png, to_pixels) for i in range(2)]
    for order in orders:
        assert sorted(order) == list(range(1, 20, 2)) != order
    assert orders[0] != orders[1]
    assert orders[0] == frames_of(reader(0).pixels, png, to_pixels)
    assert frames_of(reader(2).pixels, png, to_pixels) == [0]
    assert frames_of(reader(3).pixels, png, to_pixels) == [0, 1], "several images are no video"


def test_a_text_only_sample_has_neither(read: MakeReader, members: MakeMembers) -> None:
    sample = read({1: members(1, [("where is the star", "no")], image=False)})(1)
    assert sample.pixels is None
    assert sample.features is None


def test_with_features_the_image_is_not_touched(
    features: tuple[ShardSet, FeatureStore], tokenize: ConversationTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, store = features

    def never(index: int) -> dict[str, bytes]:
        pytest.fail("the image was read")

    monkeypatch.setattr(shards, "read", never)
    sample = SampleReader(shards, tokenize, features=store)(2)
    assert sample.pixels is None
    assert sample.features is not None
    assert sample.features.shape == (1, 1, 32, 32)
    assert torch.equal(sample.features, store.read(2))


@pytest.mark.parametrize("shuffle", [False, True])
def test_of_a_videos_features_the_same_frames_are_taken_as_of_its_pixels(
    features: tuple[ShardSet, FeatureStore], tokenize: ConversationTokenizer, to_pixels: PixelTransform, shuffle: bool
) -> None:
    shards, store = features
    pixels = SampleReader(shards, tokenize, transform=to_pixels, max_frames=3, shuffle_frames=shuffle)(4).pixels
    sample = SampleReader(shards, tokenize, features=store, max_frames=3, shuffle_frames=shuffle)(4)
    assert pixels is not None
    assert sample.features is not None
    assert torch.equal(sample.features, pixels.float().mean(2))


def test_kinds_come_from_the_record(read: MakeReader, members: MakeMembers) -> None:
    reader = read({1: members(1, kinds=["color", "count"])})
    assert [reader(0).kinds, reader(1).kinds] == [[], ["color", "count"]]


def test_kinds_are_those_of_the_turns_that_are_left(
    read: MakeReader, members: MakeMembers, tokenize: ConversationTokenizer
) -> None:
    reader = read({0: members(0, kinds=["color", "count"])})
    reader.tokenize.max_length = len(reader(0).tokens) - 1
    sample = reader(0)
    assert sample.tokens.truncated
    assert sample.kinds == ["color"]


def test_bad_samples_say_why(read: MakeReader, members: MakeMembers, clip: MakeMembers) -> None:
    whole = members(0)
    changes = {
        0: {**whole, "png": whole["png"][:200]},
        1: {**whole, "json": b"{"},
        2: {"png": whole["png"]},
        3: {"json": whole["json"]},
        4: members(4, [("where is the star", "no")]),
        5: {**whole, "json": json.dumps({"conversations": 3}).encode()},
        6: clip(6, frames=0),
        7: {**clip(7), "000003.png": b""},
    }
    reader = read(changes)
    reasons = ["image cannot be decoded", "not JSON", "no json member", "1 <image> for 0 images",
               "0 <image> for 1 images", "not a list of messages", "a video without frames", "image"]  # fmt: skip
    for index, reason in enumerate(reasons):
        with pytest.raises(SampleError, match=reason):
            reader(index)
    assert reader(8).key == "08"


def test_a_placeholder_is_one_token_without_label() -> None:
    sample = placeholder("a", 7)
    assert (sample.key, sample.kinds, sample.pixels, sample.features) == ("a", [], None, None)
    assert sample.tokens.input_ids.tolist() == [7]
    assert sample.tokens.labels.tolist() == [-100]


def test_impossible_readers_are_refused(
    features: tuple[ShardSet, FeatureStore],
    make_shards: MakeShards,
    tokenize: ConversationTokenizer,
    to_pixels: PixelTransform,
) -> None:
    shards, store = features
    with pytest.raises(UserError, match="either an image transform or a feature store"):
        SampleReader(shards, tokenize)
    with pytest.raises(UserError, match="not both"):
        SampleReader(shards, tokenize, transform=to_pixels, features=store)
    with pytest.raises(UserError, match="were not made from"):
        SampleReader(make_shards(4, name="other"), tokenize, features=store)
    with pytest.raises(UserError, match="max_frames=0 of a video; it must be at least 1"):
        SampleReader(shards, tokenize, transform=to_pixels, max_frames=0)
