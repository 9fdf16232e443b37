"""Encoded pictures to what the vision tower reads: decoding, high-resolution views, the tower's own processor.

Shapes: V views of a frame (1, or 5 in high resolution), H x W the processor's size.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from llava_mini.data.errors import SampleError

# What PIL's readers raise on damaged files, besides the OSError that it documents.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")


class ImageProcessor(Protocol):
    """An image processor of transformers, such as CLIPImageProcessorPil (it needs no torchvision)."""

    def __call__(self, images: list[Image.Image], *, return_tensors: str) -> Any: ...


def decode_image(raw: bytes) -> Image.Image:
    """The picture in RGB.

    Raises:
        SampleError: it cannot be decoded.
    """
    try:
        return Image.open(io.BytesIO(raw)).convert("RGB")
    except _DAMAGED as error:
        raise SampleError(f"image cannot be decoded: {error}") from None


def views(image: Image.Image, hd: bool) -> list[Image.Image]:
    """[image], or in high resolution its four quarters row by row and then the whole.

    Raises:
        SampleError: the image is too small to be cut.
    """
    if not hd:
        return [image]
    width, height = image.size
    if min(width, height) < 2:
        raise SampleError(f"image of {width}x{height} pixels is too small for high resolution")
    x, y = width // 2, height // 2
    boxes = [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]
    return [*(image.crop(box) for box in boxes), image]


class ImageTransform:
    """A picture to the vision tower's pixels [V, 3, H, W]."""

    def __init__(self, processor: ImageProcessor, *, hd: bool = False) -> None:
        self.processor, self.hd = processor, hd

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = self.processor(views(image, self.hd), return_tensors="np")["pixel_values"]
        return torch.from_numpy(np.stack(pixels))
