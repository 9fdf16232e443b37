"""Stored features are those that the tower gives, computed once whoever asks at the same time, shard by shard."""

import json
import multiprocessing
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import webdataset
from torch import Tensor

from llava_mini.data.features.codec import FeatureType
from llava_mini.data.features.store import FeatureRecipe, FeatureStore
from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.format.shards import write_shards
from llava_mini.data.stream.pixels import PixelTransform
from llava_mini.errors import SampleError, UserError

MakeShards = Callable[..., ShardSet]
MakeMembers = Callable[..., dict[str, bytes]]
MakePicture = Callable[[int], bytes]

WEIGHT = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)) / 14


def tower(pixels: Tensor) -> Tensor:
    """Bytes [n, V, 3, 32, 32] to [n, V, 16 patches, 16]."""
    patches = torch.nn.functional.conv2d(pixels.flatten(0, 1) / 255, WEIGHT, stride=8)
    return patches.flatten(2).transpose(1, 2).unflatten(0, pixels.shape[:2])


def recipe(dtype: FeatureType = "float32", name: str = "tower", views: int = 1) -> FeatureRecipe:
    return FeatureRecipe(name, (views, 16, 16), dtype)


def assert_direct(
    store: FeatureStore, index: int, shards: ShardSet, transform: PixelTransform, is_video: bool = False
) -> None:
    members = shards.read(index)
    direct = tower(transform([members[name] for name in sorted(members) if name != "json"], is_video))
    # other batch sizes round otherwise
    torch.testing.assert_close(store.read(index), direct, rtol=1e-5, atol=1e-6)


@pytest.fixture
def mixed(tmp_path: Path, members: MakeMembers, png: MakePicture) -> ShardSet:
    """An image, a video of 5 frames, text, two images, a damaged image, text, an image, in shards of three."""

    def sample(number: int, frames: int) -> dict[str, bytes]:
        record = members(number, image=False)
        return {**record, **{f"{frame:06d}.png": png(10 * number + frame) for frame in range(frames)}}

    samples = [members(0), sample(1, 5), sample(2, 0), sample(3, 2), {**members(4), "png": b"x"}, sample(5, 0)]
    named = [(f"s{i}", each) for i, each in enumerate([*samples, members(6)])]
    return write_shards(named, tmp_path / "mixed", samples_per_shard=3)


@pytest.mark.parametrize("mode", ["square", "hd"])
def test_features_equal_direct_encoding(make_shards: MakeShards, tmp_path: Path, mode: str) -> None:
    shards = make_shards(7)
    transform = PixelTransform(32, "hd" if mode == "hd" else "square")
    what = recipe(views=transform.num_views)
    store = FeatureStore.build(tmp_path / "f", shards, tower, what, transform, batch_size=3)
    for index in range(7):
        assert_direct(store, index, shards, transform)
    assert (len(store), store.images, store.unusable) == (7, 7, 0)
    assert store.seconds > 0
    assert store.error.largest == 0.0


def test_frames_of_videos_have_one_view_beside_high_resolution_images(
    make_shards: MakeShards, clip: MakeMembers, tmp_path: Path
) -> None:
    shards, transform = make_shards(5, {1: clip(1, 4), 4: clip(4, 2)}), PixelTransform(32, "hd")
    sizes: list[tuple[int, ...]] = []

    def noted(pixels: Tensor) -> Tensor:
        sizes.append(tuple(pixels.shape[:2]))
        return tower(pixels)

    store = FeatureStore.build(tmp_path / "f", shards, noted, recipe(views=5), transform, batch_size=8)
    assert [tuple(store.read(i).shape[:2]) for i in range(5)] == [(1, 5), (4, 1), (1, 5), (1, 5), (2, 1)]
    for index, is_video in enumerate([False, True, False, False, True]):
        assert_direct(store, index, shards, transform, is_video)
    # 5 + 4 views, 5 + 5 views, and of the second shard 2: images and videos are encoded together
    assert sizes == [(8, 1), (1, 1), (8, 1), (2, 1), (2, 1)]
    assert store.shape == (5, 16, 16)


def test_videos_text_and_damaged_pictures_keep_their_places(
    mixed: ShardSet, tmp_path: Path, to_pixels: PixelTransform
) -> None:
    FeatureStore.build(tmp_path / "f", mixed, tower, recipe(), to_pixels, batch_size=4)
    store = FeatureStore(tmp_path / "f")
    assert [len(store.read(index)) for index in (0, 1, 3, 6)] == [1, 5, 2, 1]
    for index in (0, 1, 3, 6):
        assert_direct(store, index, mixed, to_pixels)
    with pytest.raises(SampleError, match="image cannot be decoded"):
        store.read(4)
    for index in (2, 5):
        with pytest.raises(SampleError, match="it has no features"):
            store.read(index)
    assert (len(store), store.images, store.unusable) == (7, 9, 1)


def test_frames_of_several_samples_are_encoded_together(
    mixed: ShardSet, tmp_path: Path, to_pixels: PixelTransform
) -> None:
    sizes: list[int] = []

    def noted(pixels: Tensor) -> Tensor:
        sizes.append(len(pixels))
        assert pixels.dtype == torch.uint8 and not torch.is_grad_enabled()
        return tower(pixels)

    FeatureStore.build(tmp_path / "f", mixed, noted, recipe(), to_pixels, batch_size=4)
    assert sizes == [4, 2, 2, 1]  # 1 + 5 frames of the first shard, 2 of the second, 1 of the third


def test_processes_that_decode_change_nothing(mixed: ShardSet, tmp_path: Path, to_pixels: PixelTransform) -> None:
    for workers in (0, 2):
        FeatureStore.build(
            tmp_path / str(workers), mixed, tower, recipe(), to_pixels, batch_size=3, num_workers=workers
        )
    assert ShardSet(tmp_path / "0").fingerprint == ShardSet(tmp_path / "2").fingerprint


@pytest.mark.parametrize(("dtype", "share", "relative"), [("float16", 1 / 2, 1e-3), ("int8", 1 / 4, 1e-2)])
def test_smaller_types_are_smaller_and_tell_their_error(
    make_shards: MakeShards,
    tmp_path: Path,
    to_pixels: PixelTransform,
    dtype: FeatureType,
    share: float,
    relative: float,
) -> None:
    shards = make_shards(5)
    full = FeatureStore.build(tmp_path / "full", shards, tower, recipe(), to_pixels)
    small = FeatureStore.build(tmp_path / "small", shards, tower, recipe(dtype), to_pixels)
    assert small.dtype == dtype
    assert small.bytes - 5 * 300 < share * full.bytes < small.bytes  # without scale and headers
    differences = [small.read(index) - full.read(index) for index in range(5)]
    assert small.read(4).dtype == torch.float32
    assert small.error.largest == pytest.approx(max(float(each.abs().max()) for each in differences), rel=1e-5)
    squares = sum(float(each.square().sum()) for each in differences)
    own = sum(float(full.read(index).square().sum()) for index in range(5))
    assert small.error.relative == pytest.approx((squares / own) ** 0.5, rel=1e-3)
    assert 0 < small.error.relative < relative


def test_a_complete_store_is_opened_and_not_computed_again(
    make_shards: MakeShards, tmp_path: Path, to_pixels: PixelTransform
) -> None:
    shards = make_shards(5)
    first = FeatureStore.build(tmp_path / "f", shards, tower, recipe("float16"), to_pixels)

    def never(pixels: Tensor) -> Tensor:
        pytest.fail("computed again")

    again = FeatureStore.build(tmp_path / "f", shards, never, recipe("float16"), to_pixels)
    assert torch.equal(again.read(3), first.read(3))
    assert FeatureStore.build(tmp_path / "f", shards, never, recipe("float32"), to_pixels).dtype == "float16"
    assert FeatureStore(tmp_path / "f").seconds == first.seconds


def _build_and_note(folder: Path, shards: ShardSet, to_pixels: PixelTransform, log: Path) -> None:
    def noted(pixels: Tensor) -> Tensor:
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
        return tower(pixels)

    torch.set_num_threads(1)
    assert len(FeatureStore.build(folder, shards, noted, recipe(), to_pixels, batch_size=2)) == 8


def test_of_several_builders_at_once_one_computes(
    make_shards: MakeShards, tmp_path: Path, to_pixels: PixelTransform
) -> None:
    shards = make_shards(8)
    context = multiprocessing.get_context("fork")
    args = (tmp_path / "f", shards, to_pixels, tmp_path / "log")
    builders = [context.Process(target=_build_and_note, args=args) for _ in range(3)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(60)
    assert [builder.exitcode for builder in builders] == [0, 0, 0]
    noted = (tmp_path / "log").read_text().split()
    assert len(noted) == 4
    assert len(set(noted)) == 1


def test_an_interrupted_build_keeps_its_complete_shards(
    make_shards: MakeShards, tmp_path: Path, to_pixels: PixelTransform
) -> None:
    shards = make_shards(10)  # three shards
    calls: list[int] = []

    def interrupted(pixels: Tensor) -> Tensor:
        calls.append(len(pixels))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return tower(pixels)

    with pytest.raises(KeyboardInterrupt):
        FeatureStore.build(tmp_path / "f", shards, interrupted, recipe(), to_pixels, batch_size=2)
    assert sorted(path.name for path in (tmp_path / "f").iterdir()) == [
        ".lock", "features.json", "shard-000000.json", "shard-000000.tar",
    ]  # fmt: skip
    with pytest.raises(UserError, match="no complete shard set"):
        FeatureStore(tmp_path / "f")
    first = json.loads((tmp_path / "f" / "shard-000000.json").read_text())
    calls.clear()
    done: list[int] = []

    def counted(pixels: Tensor) -> Tensor:
        calls.append(len(pixels))
        return tower(pixels)

    store = FeatureStore.build(tmp_path / "f", shards, counted, recipe(), to_pixels, batch_size=2, on_shard=done.append)
    assert (calls, done) == ([2, 2, 2], [1, 2, 3])
    assert store.seconds > first["notes"]["seconds"] > 0, "seconds are those of all attempts"
    assert store.images == 10
    whole = FeatureStore.build(tmp_path / "whole", shards, tower, recipe(), to_pixels, batch_size=2)
    assert ShardSet(whole.folder).fingerprint == ShardSet(store.folder).fingerprint


def test_other_features_in_the_folder_are_refused(
    make_shards: MakeShards, members: MakeMembers, tmp_path: Path, to_pixels: PixelTransform
) -> None:
    shards = make_shards(5)
    FeatureStore.build(tmp_path / "f", shards, tower, recipe(), to_pixels)
    other = make_shards(5, {0: members(9)}, name="other")
    for data, what in ((other, recipe()), (shards, recipe(name="another")), (shards, recipe(views=5))):
        with pytest.raises(UserError, match="other data or another tower"):
            FeatureStore.build(tmp_path / "f", data, tower, what, to_pixels)
    assert len({recipe(name=name).fingerprint(data) for data in (shards, other) for name in ("a", "b")}) == 4
    with pytest.raises(UserError, match="is a shard set, but not one of features"):
        FeatureStore(shards.folder)


def test_a_part_of_other_features_is_refused(
    make_shards: MakeShards, tmp_path: Path, to_pixels: PixelTransform
) -> None:
    shards = make_shards(5)

    def interrupted(pixels: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FeatureStore.build(tmp_path / "f", shards, interrupted, recipe("int8"), to_pixels)
    for what, message in (
        (recipe("float16"), "a part of these features as int8, not float16"),
        (recipe("int8", "another"), "a part of features of other data or another tower"),
    ):
        with pytest.raises(UserError, match=message):
            FeatureStore.build(tmp_path / "f", shards, tower, what, to_pixels)
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "shard-000000.tar").touch()
    with pytest.raises(UserError, match="g holds a shard set; delete it or name another"):
        FeatureStore.build(tmp_path / "g", shards, tower, recipe(), to_pixels)


def test_features_that_a_type_cannot_hold_are_no_features(
    make_shards: MakeShards, tmp_path: Path, to_pixels: PixelTransform
) -> None:
    shards = make_shards(5)
    huge = tower(to_pixels([shards.read(2)["png"]])).abs().max()

    def scaled(pixels: Tensor) -> Tensor:
        features = tower(pixels)
        return torch.where(features.abs().amax((1, 2, 3), keepdim=True) == huge, 1e6, features)

    store = FeatureStore.build(tmp_path / "f", shards, scaled, recipe("float16"), to_pixels, batch_size=1)
    with pytest.raises(SampleError, match="not finite as float16"):
        store.read(2)
    assert (store.unusable, store.images) == (1, 4)


def test_a_wrong_shape_of_the_tower_is_an_error_with_both_shapes(
    make_shards: MakeShards, tmp_path: Path, to_pixels: PixelTransform
) -> None:
    with pytest.raises(ValueError, match=r"\(4, 1, 16, 16\), not \(4, 1, 9, 16\)"):
        FeatureStore.build(tmp_path / "f", make_shards(4), tower, FeatureRecipe("tower", (1, 9, 16)), to_pixels)


def test_damaged_files_are_named(make_shards: MakeShards, tmp_path: Path, to_pixels: PixelTransform) -> None:
    folder = FeatureStore.build(tmp_path / "f", make_shards(4), tower, recipe(), to_pixels).folder
    listing = json.loads((folder / "shards.json").read_text())
    del listing["plan"]["features"]["dtype"]
    (folder / "shards.json").write_text(json.dumps(listing))
    with pytest.raises(UserError, match="not one of features"):
        FeatureStore(folder)
    os.truncate(folder / "shard-000000.tar", 1000)
    with pytest.raises(UserError, match=r"shard-000000\.tar has 1000 bytes"):
        FeatureStore(folder)


def test_a_store_travels_to_another_process_without_its_content(
    make_shards: MakeShards, tmp_path: Path, to_pixels: PixelTransform
) -> None:
    store = FeatureStore.build(tmp_path / "f", make_shards(8), tower, recipe(), to_pixels)
    pickled = pickle.dumps(store)
    assert len(pickled) < 3000
    assert torch.equal(pickle.loads(pickled).read(7), store.read(7))


def test_webdataset_reads_features(mixed: ShardSet, tmp_path: Path, to_pixels: PixelTransform) -> None:
    store = FeatureStore.build(tmp_path / "f", mixed, tower, recipe(), to_pixels)
    tars = sorted(str(path) for path in (tmp_path / "f").glob("*.tar"))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode())
    assert [each["__key__"] for each in samples] == [f"s{i}" for i in range(7)]
    assert torch.equal(torch.from_numpy(samples[1]["npy"]), store.read(1))
    assert samples[1]["json"] == {"frames": 5}
