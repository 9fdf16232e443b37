"""Images and videos that a user names: opened, checked, and videos read frame by frame; every error is one line.

`images.py` and `video.py` define which files are valid; they read the training files too. A video that cannot be read
to its end yields the frames that can be read, and reports why it stopped.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from llava_mini.errors import SampleError, UserError
from llava_mini.files import reading
from llava_mini.media.addresses import MOST_BYTES, shortened
from llava_mini.media.images import decode_image
from llava_mini.media.video import VideoReader

# First bytes of image files. A GIF is treated as a video, since most GIFs are videos.
_IMAGES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*")


@dataclass
class VideoSource:
    """A video that is read as a stream: one frame in memory at a time.

    Attributes:
        path: Path of the video file.
    """

    path: Path
    _reader: VideoReader

    @property
    def expected(self) -> int:
        """Number of frames that the video yields if nothing is damaged."""
        return self._reader.expected

    @property
    def seconds(self) -> float:
        """Length in seconds of what can be read of the video."""
        return self._reader.seconds

    @property
    def stopped(self) -> str | None:
        """Reason why the video ends too early; None if it does not, as far as it has been read."""
        return self._reader.stopped

    def frames(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the frames [H, W, 3], upright; they end where the video is damaged.

        Raises:
            UserError: no frame can be read.
        """
        try:
            yield from self._reader.frames()
        except SampleError as error:
            raise UserError(f"{self.path}: {error}") from None


def open_image(path: Path | str) -> Image.Image:
    """Return the image in a file: RGB, upright as its EXIF says.

    Raises:
        UserError: the file is missing, empty, truncated, too large or no image.
    """
    try:
        return Image.fromarray(decode_image(read_image(path)))
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


def open_video(path: Path | str, *, fps: float = 1.0, count: int | None = None) -> VideoSource:
    """Open the video in a file; all of the file is read once, and nothing is decoded yet.

    Args:
        path: Path of the video file.
        fps: Number of frames that are read per second.
        count: Number of frames at equal distances, instead of `fps`; all frames if the video has fewer.

    Raises:
        UserError: the file is missing, empty or no video, its header is cut off, or `fps` or `count` is impossible.
    """
    path = check_file(path)
    try:
        return VideoSource(path, VideoReader(path, fps=fps, count=count))
    except SampleError as error:
        raise UserError(f"{path}: {error}") from None


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
