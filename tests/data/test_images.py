"""Damaged pictures of every format are sample errors."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from llava_mini.data.errors import SampleError
from llava_mini.data.images import decode_image


def encoded(pixels: np.ndarray, form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 4)], ids=["grey", "rgb", "rgba"])
def test_every_picture_is_decoded_to_rgb(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    image = decode_image(encoded(pixels, "PNG"))
    colors = pixels[..., :3] if pixels.ndim == 3 else pixels[..., None].repeat(3, -1)
    assert (image.dtype, image.shape) == (np.uint8, (5, 7, 3))
    assert (image == colors).all()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_damaged_pictures_raise_nothing_but_sample_errors(form: str) -> None:
    rng = np.random.default_rng(1)
    whole = encoded(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8) // 32 * 32, form)
    failed = 0
    for _ in range(300):
        raw = bytearray(whole)
        for place in rng.integers(0, len(raw), rng.integers(1, 8)):
            raw[place] = rng.integers(256)
        cut = int(rng.integers(1, len(raw))) if rng.random() < 0.3 else len(raw)
        try:
            with warnings.catch_warnings(action="ignore"):
                decode_image(bytes(raw[:cut]))
        except SampleError:
            failed += 1
    assert failed > 50


def test_no_bytes_are_a_sample_error() -> None:
    with pytest.raises(SampleError, match="cannot be decoded"):
        decode_image(b"")
