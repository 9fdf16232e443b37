"""What a user names is opened as in training; what is wrong with a file is one line that names it."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.media.test_video import audio_only, clip, number_of, picture
from tests.refusals import refuses

from llava_mini.errors import UserError
from llava_mini.media import video
from llava_mini.media.named import check_file, frames_of, kind_of, open_image, open_video

av = pytest.importorskip("av")

__all__ = ["clip"]  # a fixture
MakeClip = Callable[..., Path]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A JPEG of 60 x 40 pixels, red on its left half, whose EXIF says that the camera was held upright."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", exif=exif, quality=95)
    return tmp_path / "photo.jpg"


def test_a_photo_is_turned_upright(photo: Path) -> None:
    image = open_image(photo)
    assert (image.size, image.mode) == ((40, 60), "RGB")
    colors = np.asarray(image)[..., 0]
    assert colors[:25].min() > 200 and colors[35:].max() < 50


def wrong_files(folder: Path, photo: Path) -> dict[str, Path]:
    (folder / "empty.jpg").touch()
    (folder / "short.jpg").write_bytes(photo.read_bytes()[:500])
    (folder / "text.jpg").write_text("no image at all")
    return {name: folder / name for name in ("missing.jpg", "empty.jpg", "short.jpg", "text.jpg")} | {"folder": folder}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.jpg", "No such file or directory"),
        ("empty.jpg", "the file is empty"),
        ("short.jpg", "image cannot be decoded"),
        ("text.jpg", "none of JPEG, PNG, WEBP, GIF, BMP, TIFF"),
        ("folder", "no file"),
    ],
)
def test_what_is_no_image_is_named_in_one_line(tmp_path: Path, photo: Path, name: str, reason: str) -> None:
    path = wrong_files(tmp_path, photo)[name]
    with pytest.raises(UserError, match=reason) as error:
        open_image(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["missing.jpg", "empty.jpg", "short.jpg", "text.jpg", "folder", "sound.mp4"])
def test_what_is_no_video_is_named_in_one_line(tmp_path: Path, photo: Path, name: str) -> None:
    path = (wrong_files(tmp_path, photo) | {"sound.mp4": tmp_path / "sound.mp4"})[name]
    if name == "sound.mp4":
        audio_only(path, cover=True)
    with pytest.raises(UserError) as error:
        open_video(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_a_file_that_may_not_be_read_or_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="null"):
        check_file("a\0b")
    with pytest.raises(UserError, match="File name too long"):
        open_image("a" * 5000)


def test_frames_of_a_video_come_by_rate_or_by_number(clip: MakeClip) -> None:
    path = clip(40)
    plain = open_video(path, fps=2)
    assert (plain.expected, plain.seconds, plain.stopped) == (8, 4.0, None)
    assert [number_of(frame) for frame in frames_of(plain)] == [2, 7, 12, 17, 22, 27, 32, 37]
    assert [number_of(frame) for frame in frames_of(open_video(path, count=4))] == [5, 15, 25, 35]
    few = open_video(clip(3, name="few.mp4"), count=100)
    assert few.expected == 3 and [number_of(frame) for frame in frames_of(few)] == [0, 1, 2]


@pytest.mark.parametrize("chosen", [{"fps": 0.0}, {"fps": float("nan")}, {"count": 0}])
def test_impossible_numbers_of_frames(clip: MakeClip, chosen: dict[str, float]) -> None:
    [(key, value)] = chosen.items()
    with refuses(key, value):
        open_video(clip(10), **chosen)


@pytest.mark.parametrize(
    ("name", "muxing"), [("a.mp4", {"movflags": "faststart"}), ("a.mkv", {}), ("a.avi", {}), ("a.ts", {})]
)
def test_a_video_that_stops_in_the_middle_gives_what_can_be_read(
    clip: MakeClip, name: str, muxing: dict[str, str]
) -> None:
    path = clip(100, name=name, muxing=muxing)
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) * 6 // 10 // 188 * 188 + 99])  # in the middle of a packet of a transport stream
    source = open_video(path)
    numbers = [number_of(frame) for frame in frames_of(source)]
    assert source.stopped is not None and ("stops after" in source.stopped or "cut off" in source.stopped)
    assert 2 <= len(numbers) <= source.expected <= 8
    readable = source.seconds * 10 / source.expected
    assert numbers == [int((i + 0.5) * readable) for i in range(len(numbers))]


def test_damage_in_the_middle_ends_the_frames(clip: MakeClip, monkeypatch: pytest.MonkeyPatch) -> None:
    original = video._decoded

    def damaged(path: Path) -> Iterator[Any]:
        for number, frame in enumerate(original(path)):
            if number == 35:
                raise av.InvalidDataError(0, "damaged")
            yield frame

    monkeypatch.setattr(video, "_decoded", damaged)
    source = open_video(clip(100))
    assert [number_of(frame) for frame in frames_of(source)] == [5, 15, 25]
    assert source.stopped is not None and "cannot be read" in source.stopped


def test_a_file_without_its_header_gives_nothing(clip: MakeClip) -> None:
    path = clip(60)  # the header of a plain MP4 is its end
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(UserError, match=r"clip\.mp4: video cannot be read"):
        open_video(path)


def test_images_and_videos_are_told_apart(tmp_path: Path, photo: Path, clip: MakeClip) -> None:
    for kind in ("PNG", "BMP", "TIFF", "WEBP"):
        buffer = io.BytesIO()
        Image.fromarray(picture(5)).save(buffer, kind)
        (tmp_path / kind).write_bytes(buffer.getvalue())
        assert kind_of(tmp_path / kind) == "image"
    assert (kind_of(photo), kind_of(clip(5)), kind_of(clip(5, name="a.mkv"))) == ("image", "video", "video")
