"""Damaged pictures of every format are sample errors, and high resolution is four quarters and the whole."""

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from llava_mini.data.errors import SampleError
from llava_mini.data.images import ImageTransform, decode_image, views


def encoded(pixels: np.ndarray, form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 4)], ids=["grey", "rgb", "rgba"])
def test_every_picture_is_decoded_to_rgb(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    image = decode_image(encoded(pixels, "PNG"))
    assert (image.mode, image.size) == ("RGB", (7, 5))
    colors = pixels[..., :3] if pixels.ndim == 3 else pixels[..., None].repeat(3, -1)
    assert (np.asarray(image) == colors).all()


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


def test_high_resolution_is_four_quarters_row_by_row_and_the_whole() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    assert views(image, hd=False) == [image]
    parts = [np.asarray(view) for view in views(image, hd=True)]
    top, bottom = np.hstack(parts[:2]), np.hstack(parts[2:4])
    assert (np.vstack([top, bottom]) == pixels).all()
    assert [part.shape[:2] for part in parts] == [(3, 5)] * 4 + [(6, 10)]
    assert (parts[4] == pixels).all()


def test_odd_sizes_lose_no_pixel() -> None:
    image = Image.new("RGB", (7, 5))
    assert sum(view.width * view.height for view in views(image, hd=True)[:4]) == 35
    with pytest.raises(SampleError, match="1x5 pixels is too small"):
        views(Image.new("RGB", (1, 5)), hd=True)


def test_a_transform_gives_what_the_processor_gives_for_each_view() -> None:
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
    assert ImageTransform(processor)(image).shape == (1, 3, 16, 16)
    pixels = ImageTransform(processor, hd=True)(image)
    for view, tensor in zip(views(image, hd=True), pixels, strict=True):
        assert torch.equal(tensor, processor(view, return_tensors="pt")["pixel_values"][0])
