"""Features come back as they were stored, as exactly as their type allows, and damaged ones are refused."""

import io
from dataclasses import asdict

import numpy as np
import pytest
from numpy.typing import NDArray

from llava_mini.data.features.codec import FeatureType, StorageError, packed, unpacked
from llava_mini.errors import SampleError


def features(frames: int = 2, views: int = 1, patches: int = 9, width: int = 8) -> NDArray[np.float32]:
    """Normal numbers, of which one channel is a hundred times larger, as in CLIP's towers."""
    values = np.random.default_rng(0).normal(size=(frames, views, patches, width)).astype(np.float32)
    values[..., 3] *= 100
    return values


def test_single_precision_is_exact() -> None:
    assert (unpacked(packed(features(), "float32")) == features()).all()


def test_half_precision_keeps_eleven_bits() -> None:
    found = unpacked(packed(features(), "float16"))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, features(), rtol=2**-11, atol=1e-7)


def test_bytes_are_off_by_half_a_step_of_their_channel_at_most() -> None:
    values = features(views=5)
    found = unpacked(packed(values, "int8"))
    step = np.abs(values).max(axis=2, keepdims=True) / 127
    assert (np.abs(found - values) <= step * (0.5 + 127 * 2**-11)).all()  # a scale has eleven bits itself
    assert np.abs(found - values)[..., 0].max() < 0.02, "a large channel leaves the others their bits"


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_zeros_and_no_frames_are_kept(dtype: FeatureType) -> None:
    for values in (np.zeros((1, 1, 4, 3), np.float32), np.zeros((0, 1, 4, 3), np.float32)):
        found = unpacked(packed(values, dtype))
        assert found.shape == values.shape and not found.any()


def test_sizes_of_an_image_of_clip_at_336_pixels() -> None:
    image = features(1, 1, 576, 1024)
    sizes = {dtype: sum(map(len, packed(image, dtype).values())) for dtype in ("float16", "int8")}
    assert [round(size / 1e6, 2) for size in sizes.values()] == [1.18, 0.59]


def test_members_are_standard_arrays() -> None:
    members = packed(features(), "int8")
    numbers, scale = (np.load(io.BytesIO(members[name])) for name in ("npy", "scale.npy"))
    assert (numbers.dtype, scale.dtype, scale.shape) == (np.int8, np.float16, (2, 1, 1, 8))
    assert np.abs(numbers).max() == 127


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, "float32"), (np.inf, "float16"), (1e5, "float16"),
                                              (np.nan, "int8"), (1e8, "int8")])  # fmt: skip
def test_what_a_type_cannot_hold_is_refused(value: float, dtype: FeatureType) -> None:
    values = features()
    values[1, 0, 2, 3] = value
    with pytest.raises(SampleError, match=f"not finite as {dtype}"):
        packed(values, dtype)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    "members",
    [
        {"npy": b""},
        {"npy": b"\x93NUMPY"},
        {"npy": npy(np.zeros((1, 1, 4, 3), np.float32))[:-1]},
        {"npy": npy(np.zeros((1, 1, 4, 3), np.int64))},
        {"npy": npy(np.zeros(3, object))},
        {"npy": npy(np.asfortranarray(np.zeros((1, 1, 4, 3), np.float32)))},
        {"npy": npy(np.zeros((1, 1, 4, 3), np.int8))},
        {"npy": npy(np.zeros((1, 1, 4, 3), np.int8)), "scale.npy": npy(np.zeros((1, 1, 1, 2), np.float16))},
    ],
)
def test_damaged_members_are_refused(members: dict[str, bytes]) -> None:
    with pytest.raises(SampleError, match="its features are damaged"):
        unpacked(members)


def test_a_sample_without_features_says_so() -> None:
    with pytest.raises(SampleError, match="it has no features"):
        unpacked({"json": b"{}"})


def test_the_error_of_storing_is_summed_over_samples() -> None:
    whole, parts = StorageError(), [StorageError(), StorageError()]
    for number, part in enumerate(parts):
        values = features(number + 1)
        whole.add(values, values * np.float32(1.01))
        part.add(values, values * np.float32(1.01))
    assert whole.relative == pytest.approx(0.01, rel=1e-3)
    assert whole.largest == pytest.approx(0.01 * np.abs(features(2)).max(), rel=1e-3)
    parts[0].merge(parts[1])
    assert asdict(parts[0]) == pytest.approx(asdict(whole))
    assert StorageError(**asdict(whole)) == whole
    assert StorageError().relative == 0.0
