"""Stored features are those that the tower gives, computed once whoever asks at the same time."""

import multiprocessing
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from llava_mini.data.errors import SampleError
from llava_mini.data.feature_store import FeatureRecipe, FeatureStore
from llava_mini.data.images import pixels_of
from llava_mini.data.shards import ShardSet
from llava_mini.errors import UserError
from llava_mini.views import ImageTransform

MakeShards = Callable[..., ShardSet]
MakeMembers = Callable[..., dict[str, bytes]]

WEIGHT = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)) / 14


def tower(pixels: Tensor) -> Tensor:
    """[n, V, 3, 32, 32] to [n, V, 16 patches, 16]."""
    patches = torch.nn.functional.conv2d(pixels.flatten(0, 1), WEIGHT, stride=8)
    return patches.flatten(2).transpose(1, 2).unflatten(0, pixels.shape[:2])


def recipe(dtype: str = "float32", name: str = "tower", views: int = 1) -> FeatureRecipe:
    return FeatureRecipe(name, (views, 16, 16), dtype)


@pytest.mark.parametrize("hd", [False, True])
def test_features_equal_direct_encoding(
    make_shards: MakeShards, tmp_path: Path, transform: ImageTransform, hd: bool
) -> None:
    shards = make_shards(7)
    transform = ImageTransform(transform.processor, hd=hd)
    store = FeatureStore.build(tmp_path / "f", shards, tower, recipe(views=5 if hd else 1), transform, batch_size=3)
    for index in range(7):
        direct = tower(pixels_of(shards.read(index)["png"], transform)[None])[0]
        torch.testing.assert_close(
            store.read(index)[0], direct, rtol=1e-5, atol=1e-6
        )  # other batch sizes round otherwise
    assert len(store) == 7
    assert store.seconds > 0


def test_half_precision_halves_the_file_and_reads_as_float(
    make_shards: MakeShards, tmp_path: Path, transform: ImageTransform
) -> None:
    shards = make_shards(5)
    full = FeatureStore.build(tmp_path / "full", shards, tower, recipe(), transform)
    half = FeatureStore.build(tmp_path / "half", shards, tower, recipe("float16"), transform)
    sizes = [(store.folder / "features.npy").stat().st_size - 128 for store in (full, half)]
    assert sizes[0] == 2 * sizes[1]
    assert half.read(4).dtype == torch.float32
    torch.testing.assert_close(half.read(4), full.read(4), rtol=1e-3, atol=1e-3)


def test_a_complete_store_is_opened_and_not_computed_again(
    make_shards: MakeShards, tmp_path: Path, transform: ImageTransform
) -> None:
    shards = make_shards(5)
    first = FeatureStore.build(tmp_path / "f", shards, tower, recipe(), transform)

    def never(pixels: Tensor) -> Tensor:
        pytest.fail("computed again")

    again = FeatureStore.build(tmp_path / "f", shards, never, recipe(), transform)
    assert torch.equal(again.read(3), first.read(3))
    assert torch.equal(FeatureStore(tmp_path / "f").read(3), first.read(3))


def _build_and_note(folder: Path, shards: ShardSet, transform: ImageTransform, log: Path) -> None:
    def noted(pixels: Tensor) -> Tensor:
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
        return tower(pixels)

    torch.set_num_threads(1)
    assert len(FeatureStore.build(folder, shards, noted, recipe(), transform, batch_size=2)) == 8


def test_of_several_builders_at_once_one_computes(
    make_shards: MakeShards, tmp_path: Path, transform: ImageTransform
) -> None:
    shards = make_shards(8)
    context = multiprocessing.get_context("fork")
    args = (tmp_path / "f", shards, transform, tmp_path / "log")
    builders = [context.Process(target=_build_and_note, args=args) for _ in range(3)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(60)
    assert [builder.exitcode for builder in builders] == [0, 0, 0]
    noted = (tmp_path / "log").read_text().split()
    assert len(noted) == 4
    assert len(set(noted)) == 1


def test_an_interrupted_build_leaves_no_store_and_can_be_repeated(
    make_shards: MakeShards, tmp_path: Path, transform: ImageTransform
) -> None:
    shards = make_shards(6)
    calls = []

    def interrupted(pixels: Tensor) -> Tensor:
        calls.append(len(pixels))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return tower(pixels)

    with pytest.raises(KeyboardInterrupt):
        FeatureStore.build(tmp_path / "f", shards, interrupted, recipe(), transform, batch_size=2)
    assert [path.name for path in (tmp_path / "f").iterdir()] == [".lock"]
    with pytest.raises(UserError, match="no complete features"):
        FeatureStore(tmp_path / "f")
    assert len(FeatureStore.build(tmp_path / "f", shards, tower, recipe(), transform)) == 6


def test_other_features_in_the_folder_are_refused(
    make_shards: MakeShards, members: MakeMembers, tmp_path: Path, transform: ImageTransform
) -> None:
    shards = make_shards(5)
    FeatureStore.build(tmp_path / "f", shards, tower, recipe(), transform)
    other = make_shards(5, {0: members(9)}, name="other")
    for data, what in ((other, recipe()), (shards, recipe(name="another")), (shards, recipe("float16"))):
        with pytest.raises(UserError, match="other data or another tower"):
            FeatureStore.build(tmp_path / "f", data, tower, what, transform)
    fingerprints = {what.fingerprint(data) for data in (shards, other) for what in (recipe(), recipe("float16"))}
    assert len(fingerprints) == 4


def test_damaged_images_are_remembered_and_text_only_samples_skipped(
    make_shards: MakeShards, members: MakeMembers, tmp_path: Path, transform: ImageTransform
) -> None:
    changes = {1: {**members(1), "png": b"x"}, 2: members(2, [("where", "no")], image=False)}
    shards = make_shards(4, changes)
    FeatureStore.build(tmp_path / "f", shards, tower, recipe(), transform, batch_size=2)
    store = FeatureStore(tmp_path / "f")
    with pytest.raises(SampleError, match="image cannot be decoded"):
        store.read(1)
    assert not store.read(2).any()
    direct = tower(pixels_of(shards.read(3)["png"], transform)[None])[0]
    torch.testing.assert_close(store.read(3)[0], direct, rtol=1e-5, atol=1e-6)


def test_a_wrong_shape_of_the_tower_is_an_error_with_both_shapes(
    make_shards: MakeShards, tmp_path: Path, transform: ImageTransform
) -> None:
    with pytest.raises(ValueError, match=r"\(4, 1, 16, 16\), not \(4, 1, 9, 16\)"):
        FeatureStore.build(tmp_path / "f", make_shards(4), tower, FeatureRecipe("tower", (1, 9, 16)), transform)


def test_damaged_files_are_named(make_shards: MakeShards, tmp_path: Path, transform: ImageTransform) -> None:
    folder = FeatureStore.build(tmp_path / "f", make_shards(4), tower, recipe(), transform).folder
    os.truncate(folder / "features.npy", 1000)
    with pytest.raises(UserError, match=r"features\.npy cannot be read"):
        FeatureStore(folder)
    np.save(folder / "features.npy", np.zeros((4, 1, 16, 8), np.float32))
    with pytest.raises(UserError, match=r"features\.npy has shape \(4, 1, 16, 8\)"):
        FeatureStore(folder)
    (folder / "features.json").write_text("{")
    with pytest.raises(UserError, match=r"features\.json is not valid JSON"):
        FeatureStore(folder)


def test_a_store_travels_to_another_process_without_its_content(
    make_shards: MakeShards, tmp_path: Path, transform: ImageTransform
) -> None:
    store = FeatureStore.build(tmp_path / "f", make_shards(8), tower, recipe(), transform)
    pickled = pickle.dumps(store)
    assert len(pickled) < 1000
    assert torch.equal(pickle.loads(pickled).read(7), store.read(7))
