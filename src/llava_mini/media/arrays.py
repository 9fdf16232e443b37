"""Arrays of any layout and type as RGB; an array that can be read in two ways is refused, never guessed.

    shape                                   [H, W, 3]  [3, H, W]  [H, W, 4]  [4, H, W]  [H, W, 1]  [1, H, W]  [H, W]
    uint8, bool, other whole numbers        bytes, 0 to 255; a bool is 0 or 255
    uint16 with a value above 255           16 bits, of which the high byte is kept, as for files
    floats from 0 to 1                      times 255, rounded
    floats from 0 to 255                    bytes, rounded, where the largest is above 16 or all are whole numbers

For example, [3, 20, 3] may be 3 or 20 pixels high. A largest float of 1.2 may be a bright image that was resized or a
black one. uint16 from 0 to 200 may be a black image or one of bytes. None of them is accepted.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from llava_mini.errors import SampleError
from llava_mini.media.images import WHITE, Color, upright_rgb

LAYOUTS = ("channels_first", "channels_last")
_CHANNELS = (1, 3, 4)
_BRIGHT = 16  # floats whose largest value is between 1 and this may be of either scale


def rgb_of_array(values: NDArray[Any], layout: str | None = None, background: Color = WHITE) -> NDArray[np.uint8]:
    """Return an image as RGB [H, W, 3]; transparent pixels are put on `background`.

    `layout` is "channels_first" or "channels_last" (transformers' `input_data_format`), for ambiguous shapes.

    Raises:
        SampleError: the array has another shape or type, has a value that is out of range or not finite, or can be
            read in two ways.
    """
    if values.dtype.kind not in "buif":
        raise SampleError(f"array of {values.dtype}; allowed are whole numbers, floats and bool")
    name = f"array of {values.dtype} {list(values.shape)}"
    if layout not in (None, *LAYOUTS):
        raise SampleError(f"input_data_format={layout!r}; allowed are {', '.join(LAYOUTS)}")
    pixels = _bytes(_channels_last(values, layout, name), name)
    if pixels.shape[2] == 4:
        return upright_rgb(Image.fromarray(pixels, "RGBA"), background)
    return pixels if pixels.shape[2] == 3 else pixels.repeat(3, axis=2)


def has_unit_scale(values: NDArray[Any]) -> bool:
    """Whether an array that `rgb_of_array` accepts contains floats from 0 to 1."""
    return values.dtype.kind == "f" and bool(values.max() <= 1)


def _channels_last(values: NDArray[Any], layout: str | None, name: str) -> NDArray[Any]:
    """Return the array as [H, W, channels]."""
    if values.ndim == 2:
        values, layout = values[..., None], "channels_last"
    if values.ndim != 3 or 0 in values.shape:
        raise SampleError(f"{name}: no image; allowed are [H, W], [H, W, channels] and [channels, H, W]")
    fits = [each for each, place in zip(LAYOUTS, (0, 2), strict=True) if values.shape[place] in _CHANNELS]
    if layout is not None:
        fits = [each for each in fits if each == layout]
    if not fits:
        as_told = "" if layout is None else f" as {layout}"
        raise SampleError(f"{name}: no image{as_told}; the channels are 1, 3 or 4, first or last")
    if len(fits) > 1:
        raise SampleError(f"{name}: channels are first or last; say input_data_format={' or '.join(map(repr, fits))}")
    return values.transpose(1, 2, 0) if fits == ["channels_first"] else values


def _bytes(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Return the values as uint8 in the same shape."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values * np.uint8(255)
    least, most = values.min(), values.max()
    if not (math.isfinite(least) and math.isfinite(most)):
        raise SampleError(f"{name}: contains NaN or infinite values")
    if values.dtype == np.uint16 and most > 255:
        return (values >> 8).astype(np.uint8)
    if least < 0 or most > 255:
        raise SampleError(
            f"{name}: values from {least:g} to {most:g}; allowed are 0 to 255, floats from 0 to 1, and uint16"
        )
    if values.dtype == np.uint16 and most > 0:
        raise SampleError(f"{name}: up to {most}, so bytes or a dark image of 16 bits; give bytes as uint8")
    if values.dtype.kind != "f":
        return values.astype(np.uint8)
    if most <= 1:
        return np.rint(values.astype(np.float32) * 255).astype(np.uint8)
    if most <= _BRIGHT and (values % 1).any():
        raise SampleError(
            f"{name}: up to {most:g}, so neither clearly 0 to 1 nor 0 to 255; clip it to 1 or give bytes as uint8"
        )
    return np.rint(values).astype(np.uint8)
