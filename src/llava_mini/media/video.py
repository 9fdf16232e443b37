"""Frames of a video at the middle of every period, decoded once from front to back and never all in memory.

Time stamps alone determine which frames those are: neither a frame rate nor a length that the header claims is
trusted. Seeking is avoided, since it is slower for periods of a second and inexact where an index is damaged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from llava_mini.errors import SampleError, UserError, refused
from llava_mini.media.images import MAX_PIXELS, WHITE, Color, shrunk, upright_rgb

try:
    import av
    from av.stream import Disposition
except ImportError:
    av = None  # type: ignore[assignment] # `frames_at` reports it

MAX_FRAMES = 86_400  # a day at one frame a second; a damaged time stamp can claim centuries

# Containers of videos. Others are not even tried: some (playlists) make the reader open further files and URLs.
_FORMATS = "mov,matroska,avi,mpegts,mpeg,flv,ogg,asf,gif"
_NAMES = "MP4, MOV, MKV, WebM, AVI, MPEG, FLV, Ogg, ASF/WMV, GIF"
_ROUNDING = Fraction(1, 100)  # of a period
_SYNC = 0x47  # first byte of every packet of a transport stream
# bytes of a packet, and where the sync byte is in it: plain, M2TS, with error correction
_TS_PACKETS = ((188, 0), (192, 4), (204, 0))
_MISSING_SECONDS = 1.0  # by which a video may be shorter than its header says; audio and rounding explain no more


def frames_at(
    path: Path, fps: float, *, short_side: int | None = None, background: Color = WHITE
) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames that are shown in the middle of the periods of a video, as RGB [H, W, 3].

    A video of d seconds has n = max(1, floor(d * fps)) periods of d / n seconds each; frame i is the one shown at
    (i + 1/2) d / n. For example 10.4 s at fps = 1: ten periods of 1.04 s, and the frames shown at 0.52 s, 1.56 s, ...
    9.88 s; a clip of 0.7 s gives the one shown at 0.35 s. d is what the time stamps span; a hundredth of
    a period may be missing, since some formats round to milliseconds. The official release has the same n, and its
    frames are at most one frame away (it divides frame numbers, 0 to N - 1, instead of time). It then squashes every
    frame to a square; here the aspect ratio is kept.

    Frames are turned as the video's rotation says and have square pixels; what is transparent is on `background`.

    The shorter side is reduced to `short_side` pixels if it is longer.

    Raises:
        SampleError: the video cannot be read to the last frame that is needed, has no video or frames, more than
            `MAX_PIXELS` pixels a frame, or would give more than `MAX_FRAMES` frames.
        UserError: PyAV is not installed, or fps is not positive.
    """
    reader = VideoReader(path, fps=fps)
    if reader.stopped:
        raise SampleError(reader.stopped)
    yield from reader.frames(short_side, background)
    if reader.stopped:
        raise SampleError(reader.stopped)


class VideoReader:
    """Reader of the frames of one video, as far as it can be read.

    Frames are chosen by `fps` as in `frames_at`, or in the middle of `count` periods of equal length, at most the
    number of frames of the video.

    Attributes:
        seconds: Length in seconds of what can be read, by its time stamps.
        expected: Number of frames that the video will yield.
        stopped: Reason why the video ends too early, if it does; it may be known only when frames are read.

    Raises:
        SampleError: as in `frames_at`, except for videos that end too early or are damaged after their first frame.
        UserError: as in `frames_at`, or `count` is below 1.
    """

    def __init__(self, path: Path, *, fps: float = 1.0, count: int | None = None) -> None:
        if av is None:
            raise UserError("videos need PyAV: pip install 'llava-mini-lab[data]'")
        if not 0 < fps < math.inf:
            raise refused("fps", fps, "it must be positive")
        if count is not None and count < 1:
            raise UserError(f"{count} frames of a video; at least one is needed", key="count", value=count)
        with _readable():
            self.path, self._clip = path, _scanned(path)
        self.seconds = float(self._clip.length * self._clip.unit)
        self.expected = self._clip.periods(fps) if count is None else min(count, self._clip.frames)
        self.stopped = self._clip.stopped
        if self.expected > MAX_FRAMES:
            raise SampleError(
                f"video of {self.seconds:.0f} s has {self.expected} frames"
                + (f" at {fps} fps" if count is None else "")
                + f", {MAX_FRAMES} are allowed"
            )

    def frames(self, short_side: int | None = None, background: Color | None = None) -> Iterator[NDArray[np.uint8]]:
        """Yield the frames, RGB [H, W, 3], decoded one at a time; those after damage are left out.

        Those of a video with transparency are [H, W, 4] if no background is given.

        Raises:
            SampleError: the first frame cannot be read, or has more than `MAX_PIXELS` pixels.
        """
        previous = None
        try:
            with _readable():
                for frame in _shown_at(self._clip.middles(self.expected), _decoded(self.path)):
                    if frame is not previous:  # a frame that is shown for several periods is converted once
                        pixels = _upright(frame, self._clip.pixel_aspect, background)
                        pixels = pixels if short_side is None else shrunk(pixels, short_side)
                    previous = frame
                    yield pixels
        except SampleError as error:
            if previous is None:
                raise
            self.stopped = self.stopped or str(error)


@dataclass(frozen=True)
class _Clip:
    """Result of reading all packets of a video, in units of the time stamps, of `unit` seconds each.

    `length` goes from the start of the first frame to the end of the last; `pixel_aspect` is width over height.
    """

    start: int
    length: int
    unit: Fraction
    pixel_aspect: Fraction
    frames: int
    stopped: str | None

    def periods(self, fps: float) -> int:
        """Return the number of periods of 1 / fps seconds."""
        return max(1, math.floor(self.length * self.unit * Fraction(fps) + _ROUNDING))

    def middles(self, periods: int) -> Iterator[int]:
        """Return the time stamps of the middles of so many periods, rounded down."""
        return (self.start + (2 * period + 1) * self.length // (2 * periods) for period in range(periods))


def _scanned(path: Path) -> _Clip:
    """Read all packets of a video and decode none."""
    first, last, end = math.inf, -math.inf, -math.inf
    frames, latest, stopped = 0, 0.0, None  # latest: seconds, of all streams, since audio may be longer
    with _opened(path) as (container, stream):
        for packet in _packets(container):
            if packet is None or packet.is_corrupt:
                stopped = "video is damaged or cut off"
                break
            if packet.pts is None or packet.time_base is None:
                continue  # the empty packet that ends a stream
            stop = packet.pts + (packet.duration or 0)
            latest = max(latest, float(stop * packet.time_base))
            if packet.stream is stream and not packet.is_discard:  # by an edit list, which trims without re-encoding
                first, last, end = min(first, packet.pts), max(last, packet.pts), max(end, stop)
                frames += 1
        if (declared := _declared(container, stream)) - latest > _MISSING_SECONDS:
            stopped = f"video stops after {latest:.1f} of {declared:.1f} s"
        if container.format.name == "mpegts" and _ends_in_a_packet(path):
            stopped = stopped or "video is cut off"
        if frames == 0 or stream.time_base is None:
            raise SampleError(stopped or "video without frames")
        if end <= last:  # some formats give no lengths of packets: the last is as long as the mean
            end = last + (last - first) // max(1, frames - 1)
        aspect = stream.sample_aspect_ratio or Fraction(1)
        return _Clip(int(first), int(end - first), stream.time_base, aspect, frames, stopped)


def _packets(container: av.container.InputContainer) -> Iterator[av.Packet[Any] | None]:
    """Yield all packets of a container, and None where reading fails."""
    try:
        yield from container.demux()
    except av.FFmpegError:
        yield None


def _declared(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """Return the seconds that the header promises, 0 if it does not say them exactly."""
    if container.format.name == "avi" and stream.average_rate:  # its `duration` is derived from the file's size
        return float(stream.frames / stream.average_rate)
    if container.format.name.startswith(("mov", "matroska")):
        return (container.duration or 0) / av.time_base
    return 0.0


def _ends_in_a_packet(path: Path) -> bool:
    """Whether a transport stream, which does not give its length, ends in the middle of one of its packets."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4 * _TS_PACKETS[-1][0])
        for length, sync in _TS_PACKETS:
            if {*head[sync::length]} == {_SYNC}:
                file.seek(size - size % length + sync)  # other data after the last packet does not begin like a packet
                return file.read(1) == bytes([_SYNC])
    return False


def _shown_at(moments: Iterator[int], frames: Iterable[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """Yield for every moment the last frame that began by then, or the first of all; read no further than needed."""
    moment = next(moments, None)
    shown: av.VideoFrame | None = None
    for frame in frames:
        while shown is not None and moment is not None and frame.pts is not None and frame.pts > moment:
            yield shown
            moment = next(moments, None)
        if moment is None:
            return
        shown = frame
    if shown is None:
        raise SampleError("video without frames")
    while moment is not None:
        yield shown
        moment = next(moments, None)


def _decoded(path: Path) -> Iterator[av.VideoFrame]:
    with _opened(path) as (container, stream):
        stream.codec_context.thread_count = 1  # videos are decoded in many processes at once
        yield from container.decode(stream)


def _upright(frame: av.VideoFrame, pixel_aspect: Fraction, background: Color | None) -> NDArray[np.uint8]:
    """Return a frame [H, W, 3] with square pixels, turned upright, on the background; without one with its alpha."""
    width, height = max(1, round(frame.width * pixel_aspect)), frame.height
    if width * height > MAX_PIXELS:
        raise SampleError(f"video of {width}x{height} pixels is over the limit of {MAX_PIXELS}")
    transparent = any(component.is_alpha for component in frame.format.components)
    colors = "rgba" if transparent else "rgb24"
    pixels = frame.to_ndarray(format=colors, width=width, height=height, interpolation="BICUBIC")
    if transparent and background is not None:
        pixels = upright_rgb(Image.fromarray(pixels), background)
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    try:
        container = av.open(str(path.absolute()), options=options, metadata_errors="ignore")
    except av.ArgumentError:  # the container is not in the list
        raise SampleError(f"video cannot be read: its container is none of {_NAMES}") from None
    with container:
        streams = [each for each in container.streams.video if not each.disposition & Disposition.attached_pic]
        if not streams:
            raise SampleError("no video in this file")
        yield container, streams[0]


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except av.EOFError:
        raise SampleError("video without frames") from None
    except av.FFmpegError as error:
        raise SampleError(f"video cannot be read: {error.strerror}") from None
