"""Decode images of unknown origin to upright RGB; whatever is wrong with an image is a `SampleError`.

Pillow reads every header and so finds format, size and rotation before anything is decoded. If simplejpeg is
installed, it then decodes plain JPEGs to the same pixels in two thirds of the time. What simplejpeg refuses is left to
Pillow, so which images are usable does not depend on what is installed.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from llava_mini.errors import SampleError, refused

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

_Read = TypeVar("_Read")
Color = tuple[int, int, int]  # red, green, blue, each from 0 to 255
WHITE: Color = (255, 255, 255)

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

# Pillow's own limit for an error. It is checked here too because programs often lift Pillow's limit.
MAX_PIXELS = 178_956_970

# No other format is tried: some of Pillow's readers start other programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_PNG = b"\x89PNG\r\n\x1a\n"
_NOTES = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # Pillow reads a megabyte of each, and refuses images with more
_JPEGS = ("JPEG", "MPO")  # MPO: Pillow's name for a JPEG with further images after it, as cameras write them
_ORIENTATION = 0x0112
_SMALL = 128  # pixels of a JPEG's shorter side below which chroma subsampling would blur small details


def color_of(background: Sequence[int]) -> Color:
    """Return the RGB color that a value `background` names.

    Raises:
        UserError: it is not three whole numbers from 0 to 255.
    """
    numbers = list(background) if isinstance(background, Sequence) and not isinstance(background, str) else []
    if len(numbers) != 3 or not all(type(each) is int and 0 <= each <= 255 for each in numbers):
        raise refused("background", background, allowed="[red, green, blue], each from 0 to 255")
    red, green, blue = numbers
    return red, green, blue


def decode_image(raw: bytes, background: Color | None = WHITE) -> NDArray[np.uint8]:
    """Decode an image to RGB [H, W, 3], turned upright as its EXIF says.

    Transparent pixels are put on `background`: the usual training code drops alpha and so shows whatever color is
    below, often black. None keeps alpha, [H, W, 4], where an image has it. A palette image gets its palette's colors.
    16-bit gray keeps its high byte, as Pillow does with 16-bit colors. Of an animation, the first frame is used.

    Raises:
        SampleError: the image cannot be decoded, or has more than `MAX_PIXELS` pixels.
    """
    return _also_without_notes(partial(_decoded, background), raw)


def upright_rgb(image: Image.Image, background: Color = WHITE) -> NDArray[np.uint8]:
    """Convert an image that Pillow has opened to what `decode_image` returns for a file: RGB [H, W, 3], turned upright.

    Of an animation, Pillow's current frame is used.

    Raises:
        SampleError: `decode_image` would raise it, or the image's file was closed before it was read.
    """
    try:
        _check(image)
        image.load()
        pixels = _rgb(image, background)
    except (*_DAMAGED, AttributeError, AssertionError) as error:  # the last two where Pillow reads a closed file
        raise _unusable(error) from None
    return _upright(pixels, _orientation(image))


def verify_image(raw: bytes) -> tuple[int, int]:
    """Read a whole image as cheaply as possible, and return its upright (width, height); then it can be decoded.

    All of a JPEG's compressed stream is read, but its pixels are computed at an eighth of the size: a truncated file
    is refused.

    Raises:
        SampleError: `decode_image` would raise it.
    """
    return _also_without_notes(_verified, raw)


def encode_jpeg(pixels: NDArray[np.uint8], quality: int = 95) -> bytes:
    """Encode RGB [H, W, 3] as a JPEG, with its color at half the resolution, as is usual, unless the image is small.

    The same pixels give the same bytes wherever the same libraries are installed; simplejpeg and Pillow, and versions
    of either, may encode the same image differently.
    """
    sampling = "444" if min(pixels.shape[:2]) < _SMALL else "420"
    if simplejpeg is not None:
        pixels = np.ascontiguousarray(pixels)
        raw: bytes = simplejpeg.encode_jpeg(pixels, quality, "RGB", sampling, fastdct=False)
        return raw
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=":".join(sampling))
    return buffer.getvalue()


def shrunk(pixels: NDArray[np.uint8], short_side: int) -> NDArray[np.uint8]:
    """Shrink an image [H, W, 3] until its shorter side has at most `short_side` pixels; the aspect ratio stays."""
    height, width = pixels.shape[:2]
    shorter = min(height, width)
    if shorter <= short_side:
        return pixels
    size = (int(short_side * width / shorter), int(short_side * height / shorter))  # rounded as CLIP's processor does
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def _decoded(background: Color | None, raw: bytes) -> NDArray[np.uint8]:
    try:
        image = _opened(raw)
        pixels = _plain_jpeg(raw, image, "RGB")
        if pixels is None:
            pixels = _rgb(image, background)
    except _DAMAGED as error:
        raise _unusable(error) from None
    return _upright(pixels, _orientation(image))


def _verified(raw: bytes) -> tuple[int, int]:
    try:
        image = _opened(raw)
        width, height = image.size
        if _plain_jpeg(raw, image, "GRAY", min_height=1, min_width=1, min_factor=8, fastdct=True) is None:
            image.draft("L", (1, 1))  # the smallest scale of a JPEG; no effect on other formats
            image.load()
        if image.mode.startswith("I;16"):
            _deep(image)
    except _DAMAGED as error:
        raise _unusable(error) from None
    return (height, width) if _orientation(image) in _SIDEWAYS else (width, height)


def _also_without_notes(read: Callable[[bytes], _Read], raw: bytes) -> _Read:
    """Return what `read` makes of an image; of a PNG whose texts or color profile Pillow refuses, without these."""
    try:
        return read(raw)
    except SampleError:
        if len(kept := _without_notes(raw)) == len(raw):
            raise
    return read(kept)


def _without_notes(raw: bytes) -> bytes:
    """Return a PNG without the chunks that no pixel needs, and anything else unchanged."""
    if not raw.startswith(_PNG):
        return raw
    kept, place = [_PNG], len(_PNG)
    while place < len(raw):
        end = place + 12 + int.from_bytes(raw[place : place + 4])  # the chunk's length, name, contents and checksum
        if raw[place + 4 : place + 8] not in _NOTES:
            kept.append(raw[place:end])
        place = end
    return b"".join(kept)


def _opened(raw: bytes) -> Image.Image:
    """Open an image: its header is read and nothing is decoded."""
    if not raw:
        raise SampleError("image cannot be decoded: it has no bytes")
    try:
        with warnings.catch_warnings():  # Pillow warns from half the limit on, as if of an attack
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(raw), formats=_FORMATS)
    except UnidentifiedImageError:
        raise SampleError(f"image cannot be decoded: none of {', '.join(_FORMATS)}, or cut in its header") from None
    _check(image)
    return image


def _check(image: Image.Image) -> None:
    """Raise SampleError if an image's header says that it is unusable."""
    if not image.width * image.height:
        raise SampleError(f"image of {image.width}x{image.height} pixels")
    if image.width * image.height > MAX_PIXELS:
        raise SampleError(f"image of {image.width}x{image.height} pixels is over the limit of {MAX_PIXELS}")
    if image.mode in ("I", "F"):
        raise SampleError(f"image of mode {image.mode}: 32-bit values have no known white")


def _unusable(error: Exception) -> SampleError:
    return error if isinstance(error, SampleError) else SampleError(f"image cannot be decoded: {error}")


def _plain_jpeg(raw: bytes, image: Image.Image, colors: str, **options: float) -> NDArray[np.uint8] | None:
    """Return [H, W, channels] from simplejpeg, or None if Pillow must decide."""
    if simplejpeg is None or image.format not in _JPEGS or image.mode not in ("RGB", "L"):
        return None
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(raw, colors, **options)
    except ValueError:  # also for stray bytes between segments, which Pillow skips
        return None
    return pixels


def _rgb(image: Image.Image, background: Color | None) -> NDArray[np.uint8]:
    """Return [H, W, 3], on the background; without one [H, W, 4] if there is transparency."""
    if image.mode.startswith("I;16"):
        values = _deep(image)
        clear = values == image.info.get("transparency", -1)
        pixels = np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=-1)
        if background is None:
            return np.dstack([pixels, np.where(clear, 0, 255).astype(np.uint8)]) if clear.any() else pixels
        pixels[clear] = background
        return pixels
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if background is None:
            return np.array(image)
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return np.array(image.convert("RGB"))  # a copy, since Pillow's own memory is read-only


def _deep(image: Image.Image) -> NDArray[np.uint16]:
    """Return the values [H, W] of a 16-bit gray image.

    Raises:
        SampleError: They may be 8-bit values, which would become black; `media/arrays.py` refuses them in arrays too.
    """
    values = np.asarray(image)
    if 0 < (most := int(values.max())) <= 255:
        raise SampleError(f"16-bit image with values up to {most}: 8-bit values or a dark image; store 8 bits")
    return values


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 if there is none; after decoding, which turns some formats and drops the tag."""
    try:
        value = image.getexif().get(_ORIENTATION)
    except _DAMAGED:
        return 1  # a damaged tag is no reason to lose the image
    return value if isinstance(value, int) and value in _TURNS else 1


# EXIF orientation: (whether rows and columns are swapped first, step over rows, step over columns). For example 6, a
# camera in portrait orientation, is stored lying on its left side: columns become rows, each then read backwards.
_TURNS = {
    1: (False, 1, 1),
    2: (False, 1, -1),
    3: (False, -1, -1),
    4: (False, -1, 1),
    5: (True, 1, 1),
    6: (True, 1, -1),
    7: (True, -1, -1),
    8: (True, -1, 1),
}
_SIDEWAYS = {value for value, (swap, *_) in _TURNS.items() if swap}


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    if orientation == 1:
        return pixels
    swap, rows, columns = _TURNS[orientation]
    turned = pixels.swapaxes(0, 1) if swap else pixels
    return np.ascontiguousarray(turned[::rows, ::columns])
