"""High resolution is four quarters row by row and the whole; every view goes through the image processor."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from llava_mini.errors import UserError
from llava_mini.views import ImageTransform, views


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
    with pytest.raises(UserError, match="1x5 pixels is too small"):
        views(Image.new("RGB", (1, 5)), hd=True)


def test_a_transform_gives_what_the_processor_gives_for_each_view() -> None:
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
    assert ImageTransform(processor)(image).shape == (1, 3, 16, 16)
    pixels = ImageTransform(processor, hd=True)(image)
    for view, tensor in zip(views(image, hd=True), pixels, strict=True):
        assert torch.equal(tensor, processor(view, return_tensors="pt")["pixel_values"][0])
