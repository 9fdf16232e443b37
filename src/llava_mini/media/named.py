"""Images and videos that a user names, by path, URL or as base64 text: opened and checked; every error is one line.

`images.py` and `video.py` define which files are valid; they read the training files too. A video that cannot be read
to its end yields the frames that can be read, and reports why it stopped.
"""

from __future__ import annotations

import base64
import binascii
import stat
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import llava_mini
from llava_mini.errors import SampleError, UserError
from llava_mini.files import reading
from llava_mini.media.images import decode_image
from llava_mini.media.video import VideoReader
from llava_mini.units import GIB

MOST_BYTES = GIB  # of an image or a video, which is stored in memory
_SECONDS = 60.0  # without a response
AGENT = {"User-Agent": f"llava-mini-lab/{llava_mini.__version__}"}  # some servers refuse Python's default
_WEB = ("http://", "https://")
# First bytes of image files. A GIF is treated as a video, since most GIFs are videos.
_IMAGES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*")


def open_image(path: Path | str) -> Image.Image:
    """Return the image in a file: RGB, or RGBA if parts are transparent, upright as its EXIF says.

    Raises:
        UserError: the file is missing, empty, truncated, too large or no image.
    """
    try:
        return Image.fromarray(decode_image(read_image(path), background=None))
    except SampleError as error:
        raise UserError(f"{path}: {error}") from None


def read_image(path: Path | str) -> bytes:
    """Return the contents of a file that may be an image.

    Raises:
        UserError: the file is missing, empty or too large.
    """
    path = check_file(path)
    with reading(path):
        if (size := path.stat().st_size) > MOST_BYTES:
            raise UserError(f"{path}: image of {size} bytes, {MOST_BYTES} allowed")
        return path.read_bytes()


def open_video(path: Path | str, *, fps: float = 1.0, count: int | None = None) -> VideoReader:
    """Open the video in a file; all of the file is read once, and nothing is decoded yet.

    Read are `fps` frames a second, or `count` at equal distances; all frames if the video has fewer.

    Raises:
        UserError: the file is missing, empty or no video, its header is cut off, or `fps` or `count` is impossible.
    """
    path = check_file(path)
    try:
        return VideoReader(path, fps=fps, count=count)
    except SampleError as error:
        raise UserError(f"{path}: {error}") from None


def frames_of(video: VideoReader) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames [H, W, 3] of an opened video, upright; they end where the video is damaged.

    Raises:
        UserError: no frame can be read.
    """
    try:
        yield from video.frames()
    except SampleError as error:
        raise UserError(f"{video.path}: {error}") from None


def kind_of(path: Path | str) -> Literal["image", "video"]:
    """Return whether a file is opened as an image or as a video, by its first bytes.

    Raises:
        UserError: the file is missing or empty.
    """
    path = check_file(path)
    with reading(path), path.open("rb") as file:
        return "image" if is_image(file.read(16)) else "video"


def is_image(raw: bytes) -> bool:
    """Whether an image file begins with these bytes; 12 bytes are enough."""
    return raw.startswith(_IMAGES) or (raw[:4], raw[8:12]) == (b"RIFF", b"WEBP")


def check_file(path: Path | str) -> Path:
    """Return the path of a file that exists and is not empty.

    Raises:
        UserError: there is no such file.
    """
    if not str(path):
        raise UserError("'': no file; allowed are files of images and videos")
    path = Path(path)
    try:
        found = path.stat()
        if stat.S_ISREG(found.st_mode) and found.st_size:
            path.open("rb").close()
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{shortened(str(path))}: {reason}") from None
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path}: no file; allowed are files of images and videos")
    if not found.st_size:
        raise UserError(f"{path}: the file is empty")
    return path


def bytes_at(name: str) -> bytes | None:
    """Return the bytes at a URL (http, https, data); None for any other text, which names a file.

    Raises:
        UserError: the URL cannot be read, or has more than `MOST_BYTES` bytes.
    """
    if name.startswith(_WEB):
        return _downloaded(name)
    if name.startswith("data:"):
        head, comma, text = name.partition(",")
        raw = bytes_in(text) if comma and head.endswith(";base64") else None
        if raw is None:
            raise UserError(f"{shortened(name)}: no data of the form data:image/png;base64,...")
        return raw
    return None


def bytes_in(text: str) -> bytes | None:
    """Return the bytes of a base64 text, with or without the percent signs of a URL; None if it is not base64."""
    try:
        return base64.b64decode("".join(unquote(text).split()), validate=True)
    except (binascii.Error, ValueError):  # ValueError: characters beyond ASCII
        return None


def shortened(name: str) -> str:
    """Return a name shortened for messages, which a base64 text would fill."""
    return name if len(name) <= 200 else f"{name[:80]}... ({len(name)} characters)"


def _downloaded(address: str) -> bytes:
    try:
        request = urllib.request.Request(address, headers=AGENT)
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            raw: bytes = answer.read(MOST_BYTES + 1)
    except (OSError, HTTPException, ValueError) as error:  # ValueError: a malformed URL
        raise UserError(f"{address}: cannot be read ({' '.join(str(error).split()) or type(error).__name__})") from None
    if len(raw) > MOST_BYTES:
        raise UserError(f"{address}: more than {MOST_BYTES} bytes")
    return raw
