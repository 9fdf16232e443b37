"""An array in any layout and type is the image that it is as bytes; what can be read in two ways is refused."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from llava_mini.errors import SampleError
from llava_mini.media.arrays import has_unit_scale, rgb_of_array
from llava_mini.media.images import upright_rgb

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GRAY = RGB[..., 0]


def of_gray(values: NDArray[Any]) -> NDArray[Any]:
    return np.repeat(values[..., None], 3, axis=-1)


@pytest.mark.parametrize("channels_first", [False, True], ids=["HWC", "CHW"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_come_first_or_last(channels: int, channels_first: bool) -> None:
    values = np.random.default_rng(1).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    expected = upright_rgb(Image.fromarray(values[..., 0] if channels == 1 else values))
    seen = rgb_of_array(values.transpose(2, 0, 1) if channels_first else values)
    assert seen.dtype == np.uint8 and np.array_equal(seen, expected)


def test_an_array_without_channels_is_gray() -> None:
    assert np.array_equal(rgb_of_array(GRAY), of_gray(GRAY))
    assert np.array_equal(rgb_of_array(RGB[:3, :3, 0]), of_gray(RGB[:3, :3, 0]))  # whatever its sides are


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64, np.uint32, np.float16, np.float32, np.float64])
def test_values_up_to_255_are_bytes(dtype: type) -> None:
    assert RGB.max() > 200
    assert np.array_equal(rgb_of_array(RGB.astype(dtype)), RGB)
    assert np.array_equal(rgb_of_array(np.clip(RGB, 0, 3).astype(dtype)), np.clip(RGB, 0, 3)), "all are whole numbers"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_up_to_1_are_scaled(dtype: type) -> None:
    unit: NDArray[Any] = (RGB / 255).astype(dtype)
    assert np.array_equal(rgb_of_array(unit), RGB) and np.array_equal(rgb_of_array(unit.transpose(2, 0, 1)), RGB)
    assert has_unit_scale(unit) and not has_unit_scale(RGB.astype(dtype)) and not has_unit_scale(GRAY > 99)


def test_floats_up_to_255_are_rounded() -> None:
    assert rgb_of_array(np.array([[0.4, 0.6, 16.5, 254.6]])).tolist() == [[[0] * 3, [1] * 3, [16] * 3, [255] * 3]]


def test_masks_are_black_and_white() -> None:
    mask = GRAY > 99
    assert np.array_equal(rgb_of_array(mask), of_gray(np.where(mask, 255, 0)))


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_16_bits_keep_the_high_byte_as_files_do(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(2).integers(0, 65536, shape, dtype=np.uint16)
    seen = rgb_of_array(values)
    if len(shape) == 2:
        assert np.array_equal(seen, upright_rgb(Image.fromarray(values)))
    assert np.array_equal(seen, of_gray(values >> 8) if len(shape) == 2 else values >> 8)


def test_transparent_is_white_in_every_scale() -> None:
    rgba = (
        np.array([[[10, 60, 110, 0], [10, 60, 110, 255], [10, 60, 110, 102]]], np.uint8)
        .repeat(2, axis=0)
        .repeat(2, axis=1)
    )
    for values in (rgba, rgba / 255, rgba.astype(np.float32), rgba.transpose(2, 0, 1)):
        assert rgb_of_array(values)[0, ::2].tolist() == [[255] * 3, [10, 60, 110], [157, 177, 197]]


def test_a_layout_is_said_where_the_shape_does_not_tell_it() -> None:
    both = RGB[:3, :, :]
    with pytest.raises(SampleError, match=r"uint8 \[3, 7, 3\]: channels are first or last; say input_data_format="):
        rgb_of_array(both)
    assert np.array_equal(rgb_of_array(both, "channels_last"), both)
    assert np.array_equal(rgb_of_array(both, "channels_first"), both.transpose(1, 2, 0))
    with pytest.raises(SampleError, match=r"\[5, 7, 3\]: no image as channels_first"):
        rgb_of_array(RGB, "channels_first")
    with pytest.raises(SampleError, match="input_data_format='CHW'; allowed are channels_first, channels_last"):
        rgb_of_array(RGB, "CHW")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((5, 7, 2), np.uint8), r"uint8 \[5, 7, 2\]: no image; the channels are 1, 3 or 4"),
        (np.zeros((5, 7, 5), np.uint8), "the channels are 1, 3 or 4"),
        (np.zeros((1, 5, 3), np.uint8), r"\[1, 5, 3\]: channels are first or last"),
        (np.zeros((4, 5, 4), np.uint8), "channels are first or last"),
        (np.zeros((0, 5, 3), np.uint8), r"\[0, 5, 3\]: no image"),
        (np.zeros(5, np.uint8), r"\[5\]: no image"),
        (np.zeros((2, 5, 7, 3), np.uint8), "no image"),
        (GRAY.astype(np.complex64), "array of complex64; allowed are whole numbers, floats and bool"),
        (GRAY.astype(str), "allowed are whole numbers, floats and bool"),
        (GRAY.astype(object), "allowed are whole numbers, floats and bool"),
        (np.where(GRAY > 99, np.nan, 0.5), "NaN or infinite"),
        (np.where(GRAY > 99, np.inf, 0.5), "NaN or infinite"),
        (GRAY.astype(np.int64) - 1000, "values from -.* allowed are 0 to 255"),
        (GRAY.astype(np.int32) + 100, "values from .* to 3"),
        (GRAY / 255 * 2 - 1, r"values from -.*; allowed are 0 to 255, floats from 0 to 1"),
        (GRAY.astype(np.float32) * 2, "values from .* allowed are 0 to 255"),
        (GRAY / 255 * 1.2, r"up to 1\.\d+, so neither clearly 0 to 1 nor 0 to 255"),
        (GRAY.astype(np.uint16), r"uint16 \[5, 7\]: up to \d+, so bytes or a dark image of 16 bits"),
    ],
)  # fmt: skip
def test_what_is_no_image_or_two_is_refused_in_one_line(values: NDArray[Any], message: str) -> None:
    with pytest.raises(SampleError, match=message) as error:
        rgb_of_array(values)
    assert "\n" not in str(error.value)
