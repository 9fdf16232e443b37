"""Encoded pictures to what the vision tower reads; whatever is wrong with one is a sample error."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image
from torch import Tensor

from llava_mini.data.errors import SampleError
from llava_mini.errors import UserError
from llava_mini.views import ImageTransform

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


def decode_image(raw: bytes) -> Image.Image:
    """The picture in RGB.

    Raises:
        SampleError: it cannot be decoded.
    """
    try:
        return Image.open(io.BytesIO(raw)).convert("RGB")
    except _DAMAGED as error:
        raise SampleError(f"image cannot be decoded: {error}") from None


def pixels_of(raw: bytes, transform: ImageTransform) -> Tensor:
    """The vision tower's pixels [V, 3, H, W] of an encoded picture.

    Raises:
        SampleError: it cannot be decoded, or cannot be cut.
    """
    image = decode_image(raw)
    try:
        return transform(image)
    except UserError as error:
        raise SampleError(str(error)) from None
