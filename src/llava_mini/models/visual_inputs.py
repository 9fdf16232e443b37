"""Images and videos in all forms that transformers' processors take, converted to RGB [H, W, 3].

    an image   a PIL image, an array or a tensor (`media/arrays.py`), the name of a file, a URL (http, https, data),
               base64
    images     one, an array [N, ...] of them, or lists of these, of any depth, in the order of the text
    a video    the name or URL of a file, an array [F, ...], or a list of images
    videos     one, an array [N, F, ...] of them, or lists of these; in two nested lists names are videos, in three each
               innermost list is one video by its frames

Files and URLs are read as they are named: do not pass those of people whom you do not trust.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from llava_mini.errors import SampleError, UserError, refused
from llava_mini.media.arrays import has_unit_scale, rgb_of_array
from llava_mini.media.images import WHITE, Color, decode_image, upright_rgb
from llava_mini.media.named import bytes_at, bytes_in, check_file, is_image, read_image, shortened
from llava_mini.media.video import VideoReader

_GIF = b"GIF8"
FPS = 1.0  # default for a video file, as in `llava-mini ask`

_log = logging.getLogger(__name__)


def flat_images(images: Any) -> list[Any]:
    """Flatten lists and arrays of any depth to images in order.

    Raises:
        UserError: an item is not an image.
    """
    if images is None:
        return []
    if isinstance(images, (str, Path)) or _is_frame(images):
        return [images]
    if not isinstance(images, (list, tuple, np.ndarray, Tensor)):
        allowed = "PIL images, arrays, tensors, names of files, addresses and lists of them"
        raise refused("images", images, f"{_described(images)} is no image", given="images", allowed=allowed)
    return [image for item in images for image in flat_images(item)]


def flat_videos(videos: Any, depth: int = 0) -> list[Any]:
    """Flatten lists and arrays of any depth to videos in order, each a name or a sequence of frames.

    Raises:
        UserError: an item is not a video.
    """
    if videos is None:
        return []
    if isinstance(videos, (str, Path)):
        return [videos]
    if _is_frame(videos):
        return [[videos]]
    if isinstance(videos, (np.ndarray, Tensor)):
        return [videos] if videos.ndim == 4 else [video for item in videos for video in flat_videos(item)]
    if not isinstance(videos, (list, tuple)):
        allowed = "names of files, addresses, arrays [F, ...], lists of frames and lists of them"
        raise refused("videos", videos, f"{_described(videos)} is no video", given="videos", allowed=allowed)
    if videos and (_is_frame(videos[0]) or (depth > 1 and isinstance(videos[0], (str, Path)))):
        return [videos]
    return [video for item in videos for video in flat_videos(item, depth + 1)]


def counts_by_text(media: Any, texts: int, *, videos: bool) -> list[int] | None:
    """Return the number of images or videos given for each text, or None where one list is given for all texts.

    They are given by text where `media` is a list with an item for each text, and an item is a list of images (or of
    videos, of which a list of frames is one).
    """
    if not isinstance(media, (list, tuple)) or len(media) != texts:
        return None
    lists = [item for item in media if isinstance(item, (list, tuple)) and not (videos and item and _is_frame(item[0]))]
    if not lists:
        return None
    return [len(flat_videos(item, depth=1) if videos else flat_images(item)) for item in media]


def rgb_of(
    image: Any, layout: str | None = None, name: str = "images", *, background: Color = WHITE
) -> NDArray[np.uint8]:
    """Convert one image to RGB [H, W, 3], upright as its EXIF says; transparent parts are put on `background`.

    Args:
        image: Image in any form of the table above.
        layout: Layout (`input_data_format` of transformers) for arrays whose shape is ambiguous.
        name: Name, for messages, of an image without a name of its own.
        background: RGB color.

    Raises:
        UserError: the image cannot be read, or can be read in two ways.
    """
    if isinstance(image, (str, Path)):
        return _named(image, background)
    try:
        if isinstance(image, Image.Image):
            return upright_rgb(image, background)
        if isinstance(image, (np.ndarray, Tensor)):
            return rgb_of_array(_array(image), layout, background)
    except SampleError as error:
        raise UserError(f"{name}: {error}") from None
    raise UserError(f"{name}: {_described(image)} is no image")


def is_scaled(image: Any) -> bool:
    """Whether an image that `rgb_of` takes is an array or a tensor of floats from 0 to 1."""
    return isinstance(image, (np.ndarray, Tensor)) and has_unit_scale(_array(image))


def frames_of(video: Any, fps: float | None = None, num_frames: int | None = None) -> Iterator[Any]:
    """Yield the images of a video, decoding a file image by image; a damaged file ends early, with a warning.

    Args:
        video: Item of the list that `flat_videos` returns.
        fps: Frames per second of a file; 1 by default.
        num_frames: Number of frames at equal distances instead of `fps`, or all where there are fewer.

    Raises:
        UserError: the video has no frame or cannot be read, `fps` is given for frames without a known rate, or `fps`
            and `num_frames` are both given.
    """
    if fps is not None and num_frames is not None:
        raise refused("fps", fps, f"num_frames={num_frames} is given too", only="one of them")
    if isinstance(video, (str, Path)):
        yield from _frames_named(video, FPS if fps is None else fps, num_frames)
        return
    if fps is not None:
        raise refused("fps", fps, "the rate of frames that are given is not known", only="num_frames")
    if num_frames is not None and num_frames < 1:
        raise refused("num_frames", num_frames, allowed="1 and above")
    if len(video) == 0:
        raise UserError("videos: a video has no frame, at least one is needed", key="videos")
    count = min(num_frames or len(video), len(video))
    yield from (video[(2 * i + 1) * len(video) // (2 * count)] for i in range(count))


def _is_frame(item: Any) -> bool:
    return isinstance(item, Image.Image) or (isinstance(item, (np.ndarray, Tensor)) and item.ndim < 4)


def _array(image: np.ndarray | Tensor) -> NDArray[Any]:
    if isinstance(image, np.ndarray):
        return image
    return (image.float() if image.dtype == torch.bfloat16 else image).numpy(force=True)  # numpy has no bfloat16


def _named(name: str | Path, background: Color) -> NDArray[np.uint8]:
    try:
        return decode_image(_bytes_named(name), background)
    except SampleError as error:
        raise UserError(f"{shortened(str(name))}: {error}") from None


def _bytes_named(name: str | Path) -> bytes:
    if isinstance(name, Path):
        return read_image(name)
    if (raw := bytes_at(name)) is not None:
        return raw
    if "://" in name:
        raise UserError(f"{shortened(name)}: allowed are names of files, and addresses with http, https or data")
    try:
        return read_image(name)
    except UserError:
        raw = bytes_in(name) or b""
        if is_image(raw) or raw.startswith(_GIF):  # a name of only letters is valid base64 too, of meaningless bytes
            return raw
        raise


def _frames_named(name: str | Path, fps: float, num_frames: int | None) -> Iterator[NDArray[np.uint8]]:
    raw = bytes_at(name) if isinstance(name, str) else None
    if raw is None:
        yield from _frames_in(check_file(name), str(name), fps, num_frames)
        return
    with tempfile.NamedTemporaryFile() as file:
        file.write(raw)
        file.flush()
        yield from _frames_in(Path(file.name), shortened(str(name)), fps, num_frames)


def _frames_in(path: Path, name: str, fps: float, num_frames: int | None) -> Iterator[NDArray[np.uint8]]:
    try:
        reader = VideoReader(path, fps=fps, count=num_frames)
        yield from reader.frames()
    except SampleError as error:
        raise UserError(f"{name}: {error}") from None
    if reader.stopped:
        _log.warning("%s: %s; the model sees what could be read", name, reader.stopped)


def _described(item: Any) -> str:
    text = " ".join(repr(item).split())
    return f"{type(item).__name__} {text[:60]}{'...' if len(text) > 60 else ''}"
