"""The frames of a video are those shown in the middle of every period, whatever the container says of itself.

Every test makes its clips: each frame shows its own number as black and white blocks, so that it is known again.
"""

import io
import struct
import weakref
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tests.refusals import refuses

from llava_mini.errors import SampleError, UserError
from llava_mini.media import video
from llava_mini.media.video import MAX_FRAMES, frames_at

av = pytest.importorskip("av")

Pixels = NDArray[np.uint8]
MakeClip = Callable[..., Path]
ROWS, COLUMNS, BLOCK = 3, 4, 16  # twelve bits


def picture(number: int) -> Pixels:
    """48 x 64 pixels that show a number's bits, the lowest first."""
    bits = number >> np.arange(ROWS * COLUMNS) & 1
    blocks = (40 + 170 * bits).astype(np.uint8).reshape(ROWS, COLUMNS)
    return blocks.repeat(BLOCK, 0).repeat(BLOCK, 1)[..., None].repeat(3, -1)


def number_of(pixels: Pixels) -> int:
    height, width = pixels.shape[0] // ROWS, pixels.shape[1] // COLUMNS
    middles = pixels[height // 2 :: height, width // 2 :: width, 1][:ROWS, :COLUMNS]
    return int(((middles > 125).reshape(-1) << np.arange(ROWS * COLUMNS)).sum())


def numbers(path: Path, fps: float = 1.0) -> list[int]:
    return [number_of(frame) for frame in frames_at(path, fps)]


@pytest.fixture
def clip(tmp_path: Path) -> MakeClip:
    """clip(frames, rate=10, name="clip.mp4"): a video; stamps in milliseconds make its frames come irregularly."""

    def make(
        frames: int,
        rate: int = 10,
        name: str = "clip.mp4",
        codec: str = "mpeg4",
        stamps: Sequence[int] | None = None,
        seconds_of_audio: int = 0,
        pixel_aspect: Fraction | None = None,
        muxing: dict[str, str] | None = None,
        **coding: str,
    ) -> Path:
        path = tmp_path / name
        with av.open(str(path), "w", options=muxing or {}) as container:
            stream = container.add_stream(codec, rate=rate, options=coding)
            stream.width, stream.height, stream.pix_fmt = COLUMNS * BLOCK, ROWS * BLOCK, "yuv420p"
            if pixel_aspect is not None:
                stream.codec_context.sample_aspect_ratio = pixel_aspect
            if stamps is not None:
                stream.codec_context.time_base = Fraction(1, 1000)
            sound = container.add_stream("aac", rate=8000, layout="mono") if seconds_of_audio else None
            for number in range(frames):
                frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
                if stamps is not None:
                    frame.pts, frame.time_base = stamps[number], Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
            if sound is not None:
                silence = av.AudioFrame.from_ndarray(
                    np.zeros((1, 8000 * seconds_of_audio), np.float32), format="fltp", layout="mono"
                )
                silence.sample_rate = 8000
                container.mux(sound.encode(silence))
                container.mux(sound.encode())
        return path

    return make


def test_the_example_of_the_docstring(clip: MakeClip) -> None:
    assert numbers(clip(104)) == [5, 15, 26, 36, 46, 57, 67, 78, 88, 98]
    assert numbers(clip(7)) == [3]


@pytest.mark.parametrize(("frames", "rate"), [(30, 10), (39, 10), (45, 30), (299, 30), (50, 24), (72, 24), (7, 1)])
@pytest.mark.parametrize("fps", [0.5, 1.0, 2.0, 4.0])
def test_frames_are_those_shown_in_the_middle_of_equal_periods(
    clip: MakeClip, frames: int, rate: int, fps: float
) -> None:
    seconds = Fraction(frames, rate)
    periods = max(1, int(seconds * Fraction(fps)))
    expected = [int(Fraction(2 * i + 1, 2 * periods) * frames) for i in range(periods)]
    assert numbers(clip(frames, rate), fps) == expected


@pytest.mark.parametrize(("frames", "rate"), [(30, 10), (104, 10), (299, 30), (71, 24), (100, 25)])
def test_the_official_release_has_as_many_frames_and_at_most_one_frame_others(
    clip: MakeClip, frames: int, rate: int
) -> None:
    """The release: n = N // rate frames, at (round(i s) + round((i + 1) s)) // 2 for segments of s = (N - 1) / n."""
    periods = frames // rate
    bounds = np.round(np.arange(periods + 1) * (frames - 1) / periods).astype(int)
    ours = numbers(clip(frames, rate))
    assert len(ours) == periods
    assert np.abs(np.array(ours) - (bounds[:-1] + bounds[1:]) // 2).max() <= 1


@pytest.mark.parametrize("frames", [1, 2, 5, 9])
def test_a_clip_shorter_than_a_period_gives_its_middle_frame(clip: MakeClip, frames: int) -> None:
    assert numbers(clip(frames)) == [frames // 2]
    assert numbers(clip(frames), fps=0.01) == [frames // 2]


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mov", "mpeg4"), ("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.avi", "mpeg4"),
     ("a.ts", "libx264"), ("a.m2ts", "mpeg2video"), ("a.mpg", "mpeg2video"), ("a.flv", "flv"), ("a.wmv", "wmv2")],
)  # fmt: skip
def test_containers_agree(clip: MakeClip, name: str, codec: str) -> None:
    """Frames that are stored in another order than shown too, which libx264 does by default."""
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    assert numbers(clip(75, 25, name, codec)) == [12, 37, 62]


def test_a_gif_is_a_video(tmp_path: Path) -> None:
    frames = [Image.fromarray(picture(number)) for number in range(8)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=250)
    assert numbers(tmp_path / "a.gif") == [2, 6]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_of_irregular_frames_time_decides_and_not_number(clip: MakeClip, name: str) -> None:
    path = clip(7, name=name, stamps=[0, 100, 200, 300, 3000, 3100, 5900])
    assert numbers(path) == [3, 3, 3, 5, 5, 5]
    assert numbers(path, fps=0.2) == [4]


def test_a_frame_that_is_shown_for_long_is_made_pixels_once(clip: MakeClip, monkeypatch: pytest.MonkeyPatch) -> None:
    made, original = [], video._upright

    def noted(frame: Any, *options: Any) -> Pixels:
        made.append(frame.pts)
        return original(frame, *options)

    monkeypatch.setattr(video, "_upright", noted)
    assert numbers(clip(3, name="a.mkv", stamps=[0, 100, 8900])) == [1] * 9
    assert made == [100]


def test_a_clip_that_was_trimmed_without_coding_again_begins_where_it_is_shown(clip: MakeClip) -> None:
    path = clip(40)
    raw = path.read_bytes()
    place = raw.index(b"elst") + 12
    milliseconds, start = struct.unpack_from(">Ii", raw, place)
    assert (milliseconds, start) == (4000, 0)
    with av.open(str(path)) as container:
        second = int(1 / container.streams.video[0].time_base)
    path.write_bytes(raw[:place] + struct.pack(">Ii", 3000, second) + raw[place + 8 :])
    assert numbers(path) == [15, 25, 35]


def test_rounded_time_stamps_cost_no_period(clip: MakeClip) -> None:
    path = clip(30, name="a.mkv", stamps=[int(99.9 * number) for number in range(30)])
    assert numbers(path) == [5, 15, 25], "although it lasts 2.997 s"


def test_a_video_may_begin_late(clip: MakeClip) -> None:
    path = clip(30, name="a.mkv", stamps=[10_000 + 100 * number for number in range(30)])
    assert numbers(path) == [5, 15, 25]


def test_a_missing_length_is_found(clip: MakeClip) -> None:
    path = clip(30, name="a.mkv", muxing={"live": "1"})
    with av.open(str(path)) as container:
        assert container.duration is None and container.streams.video[0].duration is None
    assert numbers(path) == [5, 15, 25]


def test_audio_that_continues_longer_does_not_count(clip: MakeClip) -> None:
    path = clip(20, seconds_of_audio=5)
    with av.open(str(path)) as container:
        assert container.duration > 4.9e6
    assert numbers(path) == [5, 15]


def turned(path: Path, quarters: int) -> Path:
    """The same mp4 with a note that players are to turn it clockwise."""
    raw = path.read_bytes()
    cosine, sine = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarters]
    place = raw.index(b"tkhd") + 4 + 40
    matrix = [value << 16 for value in (cosine, sine, 0, -sine, cosine, 0, 0, 0)]
    assert struct.unpack_from(">8i", raw, place) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0)
    path.write_bytes(raw[:place] + struct.pack(">8i", *matrix) + raw[place + 32 :])
    return path


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_frames_are_turned_as_the_video_says(clip: MakeClip, quarters: int) -> None:
    plain = list(frames_at(clip(20), 1.0))
    frames = list(frames_at(turned(clip(20), quarters), 1.0))
    assert [frame.shape for frame in frames] == [(64, 48, 3) if quarters % 2 else (48, 64, 3)] * 2
    assert all(np.array_equal(np.rot90(a, -quarters), b) for a, b in zip(plain, frames, strict=True))


def test_pixels_that_are_not_square_are_made_so(clip: MakeClip) -> None:
    frames = list(frames_at(clip(20, pixel_aspect=Fraction(3, 2)), 1.0))
    assert [frame.shape for frame in frames] == [(48, 96, 3)] * 2
    assert [number_of(frame) for frame in frames] == [5, 15]
    (narrow,) = frames_at(clip(5, pixel_aspect=Fraction(1, 2)), 1.0, short_side=16)
    assert narrow.shape == (24, 16, 3)


def test_the_shorter_side_is_bounded_and_the_aspect_kept(clip: MakeClip) -> None:
    path = clip(20)
    assert [frame.shape for frame in frames_at(path, 1.0, short_side=24)] == [(24, 32, 3)] * 2
    assert [number_of(frame) for frame in frames_at(path, 1.0, short_side=24)] == [5, 15]
    assert [frame.shape for frame in frames_at(path, 1.0, short_side=100)] == [(48, 64, 3)] * 2


def test_colors_stay(tmp_path: Path, clip: MakeClip) -> None:
    frame = next(frames_at(clip(10), 1.0))
    assert np.abs(frame.astype(int) - picture(5)).mean() < 6
    assert frame.dtype == np.uint8 and frame.flags.c_contiguous and frame.flags.writeable


@pytest.mark.parametrize(("codec", "pixels"), [("png", "rgba"), ("qtrle", "argb")])
def test_what_is_transparent_is_put_on_white(tmp_path: Path, codec: str, pixels: str) -> None:
    drawing = np.zeros((8, 16, 4), np.uint8)
    drawing[:, 8:] = (0, 0, 255, 255)
    with av.open(str(tmp_path / "a.mov"), "w") as container:
        stream = container.add_stream(codec, rate=2)
        stream.width, stream.height, stream.pix_fmt = 16, 8, pixels
        container.mux(stream.encode(av.VideoFrame.from_ndarray(drawing, format="rgba").reformat(format=pixels)))
        container.mux(stream.encode())
    (frame,) = frames_at(tmp_path / "a.mov", 1.0)
    assert np.array_equal(frame, np.where(drawing[..., 3:] == 0, 255, drawing[..., :3]))
    (frame,) = frames_at(tmp_path / "a.mov", 1.0, background=(7, 8, 9))
    assert np.array_equal(frame, np.where(drawing[..., 3:] == 0, (7, 8, 9), drawing[..., :3]))
    (frame,) = video.VideoReader(tmp_path / "a.mov").frames()
    assert np.array_equal(frame, drawing)


def test_frames_are_made_one_at_a_time_and_no_more_than_needed(clip: MakeClip, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    original = video._decoded

    def counted(path: Path) -> Iterator[Any]:
        for frame in original(path):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(video, "_decoded", counted)
    frames, alive = frames_at(clip(100), 1.0), []
    for number, frame in enumerate(frames):
        assert len(decoded) == 10 * number + 7, "up to the first frame behind the middle"
        alive.append(weakref.ref(frame))
        del frame
        assert sum(reference() is not None for reference in alive) <= 2
    assert (len(alive), len(decoded)) == (10, 97)


def test_an_endless_video_is_refused_before_it_is_decoded(clip: MakeClip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(video, "_decoded")
    jump = clip(3, name="a.mkv", codec="libx264", stamps=[0, 100, 99_999_900])
    with pytest.raises(SampleError, match=rf"video of 100000 s has 100000 frames at 1.0 fps, {MAX_FRAMES} are allowed"):
        next(frames_at(jump, 1.0))
    with pytest.raises(SampleError, match="allowed"):
        next(frames_at(clip(10), 1e6))


def test_huge_frames_are_refused(clip: MakeClip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(SampleError, match="video of 64x48 pixels is over the limit of 3071"):
        next(frames_at(clip(10), 1.0))


def audio_only(path: Path, cover: bool) -> None:
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=8000, layout="mono")
        if cover:
            raw = io.BytesIO()
            Image.fromarray(picture(5)).save(raw, "JPEG")
            picture_stream = container.add_stream("mjpeg", rate=1)
            picture_stream.width, picture_stream.height, picture_stream.pix_fmt = 64, 48, "yuvj420p"
            picture_stream.disposition = av.stream.Disposition.attached_pic
            packet = av.Packet(raw.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = picture_stream, 0, 0, Fraction(1)
            container.mux(packet)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(sound.encode(frame))
        container.mux(sound.encode())


@pytest.mark.parametrize("cover", [False, True])
def test_sound_is_no_video_even_with_a_cover(tmp_path: Path, cover: bool) -> None:
    audio_only(tmp_path / "a.mp4", cover)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert len(container.streams.video) == cover
    with pytest.raises(SampleError, match="no video in this file"):
        next(frames_at(tmp_path / "a.mp4", 1.0))


def test_an_animation_that_is_no_video_is_told_what_is_one(tmp_path: Path) -> None:
    first, *others = (Image.new("RGB", (16, 8), color) for color in ("red", "green", "blue"))
    first.save(tmp_path / "a.webp", save_all=True, append_images=others, duration=500)
    with pytest.raises(SampleError, match=r"^video cannot be read: its container is none of MP4, MOV, .*, GIF$"):
        next(frames_at(tmp_path / "a.webp", 1.0))


def test_a_video_without_frames_says_so(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    with pytest.raises(SampleError, match="video without frames"):
        next(frames_at(tmp_path / "a.mkv", 1.0))


@pytest.mark.parametrize(
    "raw",
    [b"", b"no video", bytes(5000), b"ffconcat version 1.0\nfile clip.mp4\n",
     b"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nclip.mp4\n#EXT-X-ENDLIST\n"],
    ids=["empty", "text", "zeros", "concat", "playlist"],
)  # fmt: skip
def test_other_files_are_refused_also_those_that_name_a_video(tmp_path: Path, clip: MakeClip, raw: bytes) -> None:
    assert numbers(clip(10)) == [5]
    (tmp_path / "a.mp4").write_bytes(raw)
    with pytest.raises(SampleError, match="video cannot be read"):
        next(frames_at(tmp_path / "a.mp4", 1.0))


def test_a_missing_file_is_a_sample_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none.mp4", tmp_path):
        with pytest.raises(SampleError, match="video cannot be read"):
            next(frames_at(path, 1.0))


def test_names_are_files_and_nothing_else(clip: MakeClip, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clip(10, name="plain.mp4")
    monkeypatch.chdir(path.parent)
    for name in ("concat:plain.mp4", "frame %03d.mp4", "ü?.mp4"):
        Path(name).write_bytes(path.read_bytes())
        assert numbers(Path(name)) == [5]


@pytest.mark.parametrize(
    ("name", "muxing"), [("a.mp4", {}), ("a.mp4", {"movflags": "faststart"}), ("a.mkv", {}), ("a.avi", {})]
)
def test_a_video_that_is_cut_off_is_refused(clip: MakeClip, name: str, muxing: dict[str, str]) -> None:
    path = clip(60, name=name, muxing=muxing)
    raw = path.read_bytes()
    for cut in np.linspace(100, len(raw) * 0.8, 15).astype(int):
        path.write_bytes(raw[:cut])
        with pytest.raises(SampleError, match=r"cannot be read|cut off|stops after|without frames|no video in"):
            numbers(path)


@pytest.mark.parametrize(("name", "packet", "rest"), [("a.ts", 188, 1), ("a.ts", 188, 187), ("a.m2ts", 192, 100)])
def test_a_transport_stream_that_ends_in_a_packet_is_refused(clip: MakeClip, name: str, packet: int, rest: int) -> None:
    path = clip(60, name=name, codec="mpeg2video")
    raw = path.read_bytes()
    assert len(raw) % packet == 0 and len(numbers(path)) == 6
    path.write_bytes(raw + bytes(rest))  # no packet: something that was added
    assert len(numbers(path)) == 6
    path.write_bytes(raw[: len(raw) * 6 // 10 // packet * packet + rest])
    with pytest.raises(SampleError, match="video is cut off"):
        numbers(path)


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_damaged_videos_raise_nothing_but_sample_errors(clip: MakeClip, codec: str) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    path, rng, failed = clip(30, codec=codec), np.random.default_rng(0), 0
    whole = path.read_bytes()
    for _ in range(60):
        raw = bytearray(whole)
        for place in rng.integers(0, len(raw), rng.integers(1, 30)):
            raw[place] = rng.integers(256)
        path.write_bytes(raw)
        try:
            assert numbers(path)
        except SampleError:
            failed += 1
    assert failed > 10


def test_without_pyav_the_user_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "av", None)
    with pytest.raises(UserError, match=r"videos need PyAV: pip install 'llava-mini-lab\[data\]'"):
        next(frames_at(tmp_path / "a.mp4", 1.0))


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf")])
def test_fps_must_be_positive(tmp_path: Path, fps: float) -> None:
    with refuses("fps", fps):
        next(frames_at(tmp_path / "a.mp4", fps))
