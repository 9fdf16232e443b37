"""Sources of a session: the images and videos that a user names, as a stream of pixels, with progress.

Shapes: F frames, V views, H x W pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from llava_mini.errors import refused
from llava_mini.media.images import color_of
from llava_mini.media.named import frames_of, kind_of, open_image, open_video
from llava_mini.models import LlavaMiniProcessor
from llava_mini.models.visual_inputs import rgb_of

Source = str | Path | Image.Image | np.ndarray | Tensor | Iterable[Any]


@dataclass(frozen=True)
class Media:
    """An image or video that was encoded: its frames, and of a file's video the seconds and why it ended early."""

    kind: Literal["image", "video"]
    frames: int
    seconds: float | None
    stopped: str | None


@dataclass(frozen=True)
class Progress:
    """Progress of encoding: frames so far and in all (None: not known), and rates since the start."""

    frames: int
    expected: int | None
    frames_per_second: float
    video_seconds_per_second: float | None


@dataclass(frozen=True)
class Opened:
    """A source that can be read once."""

    name: str
    kind: Literal["image", "video"]
    frames: Iterator[Any]
    expected: int | None
    seconds: float | None = None
    stopped: Callable[[], str | None] = lambda: None


def open_source(source: Source, *, fps: float = 1.0, count: int | None = None) -> Opened:
    """Open any source that `Session.add_media` accepts, ready to be read.

    Raises:
        UserError: the source is missing, cannot be read, or is neither image nor frames.
    """
    if isinstance(source, (str, Path)):
        return _opened_file(Path(source), fps, count)
    dimensions = source.ndim if isinstance(source, (np.ndarray, Tensor)) else None
    if isinstance(source, Image.Image) or dimensions in (2, 3):
        return Opened("image", "image", iter([source]), 1)
    if not isinstance(source, Iterable) or dimensions not in (None, 4):
        allowed = "a path, a PIL image, an array [H, W, 3], frames of a video"
        raise refused("source", source, given=f"source: {type(source).__name__}", allowed=allowed)
    expected = len(source) if isinstance(source, Sized) else None
    return Opened("frames", "video", iter(source), expected)


def pixels_of(opened: Opened, processor: LlavaMiniProcessor, at_once: Callable[[int], int]) -> Iterator[Tensor]:
    """Yield pixels [F, V, 3, H, W] of the next frames, `at_once(V)` at a time; only those are in memory.

    Raises:
        UserError: a frame is no image, or an unusable one.
    """
    waiting: list[Tensor] = []
    for frame in opened.frames:
        waiting.append(pixels_of_frame(frame, opened.name, processor, is_video=opened.kind == "video"))
        if len(waiting) >= at_once(len(waiting[0])):
            yield torch.stack(waiting)
            waiting = []
    if waiting:
        yield torch.stack(waiting)


def pixels_of_frame(frame: Any, name: str, processor: LlavaMiniProcessor, *, is_video: bool) -> Tensor:
    """Return pixels [V, 3, H, W] of one frame; a PIL image becomes what its file would, upright as its EXIF says.

    A uint8 array [H, W, 3] or [H, W, 4] is accepted whatever H is; other arrays and tensors are read as the processor
    reads them.

    Raises:
        UserError: the frame is no image, or an unusable one; the message begins with `name`.
    """
    is_rgb = isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3
    if not is_rgb or not frame.size:
        has_alpha = isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.shape[2:] == (4,)
        layout = "channels_last" if has_alpha else None
        frame = rgb_of(frame, layout, name, background=color_of(processor.background))
    return processor.pixels(frame, is_video=is_video, input_data_format="channels_last")


@contextmanager
def shown(progress: bool | Callable[[Progress], None], opened: Opened) -> Iterator[Callable[[int], None]]:
    """Yield a function that is called with the number of encoded frames, and shows progress as `progress` requests."""
    began = time.monotonic()
    bar = tqdm(total=opened.expected, unit="frame", desc=opened.name, disable=progress is not True)

    def report(frames: int) -> None:
        rate = frames / max(time.monotonic() - began, 1e-9)
        video = rate * opened.seconds / opened.expected if opened.seconds and opened.expected else None
        if video is not None:
            bar.set_postfix_str(f"{video:.1f} s of video/s", refresh=False)
        bar.update(frames - bar.n)
        if callable(progress):
            progress(Progress(frames, opened.expected, rate, video))

    with bar:
        yield report


def _opened_file(path: Path, fps: float, count: int | None) -> Opened:
    if kind_of(path) == "image":
        return Opened(str(path), "image", iter([open_image(path)]), 1)
    video = open_video(path, fps=fps, count=count)
    return Opened(str(path), "video", frames_of(video), video.expected, video.seconds, lambda: video.stopped)
