"""A picture to the views that the vision tower reads: itself, or in high resolution its four quarters and then itself.

Both the data room and the processor cut pictures; this is the one place that says how (REFERENCE section 1).

Shapes: V views of a frame (1, or 5 in high resolution), H x W the image processor's size.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from llava_mini.errors import UserError


class ImageProcessor(Protocol):
    """An image processor of transformers, such as CLIPImageProcessorPil (it needs no torchvision)."""

    def __call__(self, images: list[Image.Image], *, return_tensors: str) -> Any: ...


def views(image: Image.Image, hd: bool) -> list[Image.Image]:
    """[image], or in high resolution its four quarters row by row and then the whole.

    Raises:
        UserError: the image is too small to be cut.
    """
    if not hd:
        return [image]
    width, height = image.size
    if min(width, height) < 2:
        raise UserError(f"image of {width}x{height} pixels is too small for high resolution")
    x, y = width // 2, height // 2
    boxes = [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]
    return [*(image.crop(box) for box in boxes), image]


class ImageTransform:
    """A picture to the vision tower's pixels [V, 3, H, W].

    Args:
        processor: Resizes, crops and normalises.
        hd: Whether to cut the picture.
    """

    def __init__(self, processor: ImageProcessor, *, hd: bool = False) -> None:
        self.processor, self.hd = processor, hd

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = self.processor(views(image, self.hd), return_tensors="np")["pixel_values"]
        return torch.from_numpy(np.stack(pixels))
