"""Images and videos in every form that transformers' processors take become the same RGB, in the order of the text."""

import base64
import io
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.media.test_addresses import served
from tests.media.test_video import clip
from tests.refusals import refuses

from llava_mini.errors import UserError
from llava_mini.media.video import frames_at
from llava_mini.models.visual_inputs import flat_images, flat_videos, frames_of, is_scaled, rgb_of

pytest.importorskip("av")

__all__ = ["clip", "served"]  # fixtures
MakeClip = Callable[..., Path]
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def written(path: Path, pixels: np.ndarray = PIXELS) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def test_one_image_in_every_form(served: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a b.png")
    encoded = base64.b64encode(path.read_bytes()).decode()
    tensor = torch.from_numpy(PIXELS)
    forms: list[Any] = [
        Image.fromarray(PIXELS), Image.open(path), path, str(path), f"{served}/a%20b.png", encoded,
        f"data:image/png;base64,{encoded}", PIXELS, PIXELS.transpose(2, 0, 1), PIXELS / 255, tensor,
        tensor.permute(2, 0, 1), tensor.double() / 255, (tensor.float() / 255).requires_grad_(), tensor.half(),
    ]  # fmt: skip
    for form in forms:
        (flat,) = flat_images(form)
        assert np.array_equal(rgb_of(flat), PIXELS), form
    rounded = rgb_of(tensor.to(torch.bfloat16) / 255)  # which has eight bits, the last of them rounded
    assert np.abs(rounded.astype(int) - PIXELS).max() <= 1


def test_a_gif_is_an_image_where_an_image_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (6, 4), "red").save(tmp_path / "a.gif")
    raw = (tmp_path / "a.gif").read_bytes()
    for name in (str(tmp_path / "a.gif"), base64.b64encode(raw).decode()):
        assert rgb_of(name).tolist() == [[[255, 0, 0]] * 6] * 4


def test_a_file_is_seen_as_in_training(tmp_path: Path) -> None:
    """Turned as EXIF says, 16 bits by their high byte, what is transparent on white; opened or by name."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(tmp_path / "turned.png", exif=exif)
    deep = np.random.default_rng(1).integers(0, 65536, (4, 5), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.new("RGBA", (6, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    expected = {
        "turned.png": np.rot90(PIXELS, -1),
        "deep.png": np.repeat((deep >> 8)[..., None], 3, axis=-1),
        "clear.png": np.full((4, 6, 3), 255),
    }
    for name, pixels in expected.items():
        assert np.array_equal(rgb_of(str(tmp_path / name)), pixels), name
        with Image.open(tmp_path / name) as image:
            assert np.array_equal(rgb_of(image), pixels), name


def test_images_of_a_batch_lie_in_order() -> None:
    a, b, c = (np.full((5, 6, 3), value, np.uint8) for value in (1, 2, 3))
    batches: list[Any] = [
        [a, b, c], [[a, b], [c]], [[[a], [b]], c], np.stack([a, b, c]), torch.from_numpy(np.stack([a, b, c])),
        [np.stack([a, b]), c], ([a, None], [], [b, c]),
    ]  # fmt: skip
    for images in batches:
        assert [int(rgb_of(image)[0, 0, 0]) for image in flat_images(images)] == [1, 2, 3]
    assert flat_images(["a.png", Path("b.png")]) == ["a.png", Path("b.png")] and flat_images(None) == []


@pytest.mark.parametrize("image", [3, {"a": 1}, b"\x89PNG", object()])
def test_what_is_no_image(image: Any) -> None:
    for given in (image, [image], [["a.png"], [image]]):
        with refuses("images"):
            flat_images(given)
    with pytest.raises(UserError, match="is no image"):
        rgb_of(image)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("lost.png", "No such file or directory"),
        ("lost", "No such file or directory"),  # which is base64, of three bytes that are no image
        ("empty.png", "the file is empty"),
        ("text.png", "image cannot be decoded: none of JPEG, PNG"),
        ("", "no file"),
        ("a\0b.png", "(stat: )?embedded null"),
    ],
)
def test_a_file_that_is_no_image_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.png").touch()
    Path("text.png").write_text("no image")
    for given in (name, Path(name)):
        with pytest.raises(UserError) as error:
            rgb_of(given)
        line = str(error.value)
        assert re.match(f"{re.escape(str(given) or repr(given))}: {reason}", line) and "\n" not in line


def test_other_addresses_are_refused_by_name() -> None:
    for name in ("file:///a.png", "s3://bucket/a.png"):
        with pytest.raises(UserError, match=f"^{name}: allowed are names of files, and addresses with http, https or"):
            rgb_of(name)


def test_texts_that_are_no_image_do_not_fill_the_message(served: str) -> None:
    for name in ("A" * 100_000, "data:image/png;base64," + "A" * 100_000):
        with pytest.raises(UserError) as error:
            rgb_of(name)
        assert len(str(error.value)) < 250
    with pytest.raises(UserError, match=f"^{served}/lost.png: cannot be read .HTTP Error 404"):
        rgb_of(f"{served}/lost.png")


@pytest.mark.parametrize("image", [torch.ones(4, 5, dtype=torch.complex64), torch.zeros(5, 4, 2), np.full((4, 5), -1)])
def test_tensors_and_arrays_that_are_no_image(image: Any) -> None:
    with pytest.raises(UserError, match="^images: array of"):
        rgb_of(image)
    with pytest.raises(UserError, match="^push: array of"):
        rgb_of(image, name="push")


def test_floats_that_are_scaled_already() -> None:
    assert is_scaled(torch.ones(2, 2)) and is_scaled(np.zeros((2, 2)))
    assert not any(map(is_scaled, (torch.ones(2, 2, dtype=torch.uint8), np.full((2, 2), 9.0), "a.png", PIXELS)))


def test_videos_of_a_batch_lie_in_order() -> None:
    a, b, c = (np.full((2, 5, 6, 3), value, np.uint8) for value in (1, 2, 3))
    opened = [Image.fromarray(frame) for frame in c]
    batches: list[Any] = [
        [a, b, c], [list(a), list(b), opened], [[a, b], [c]], [[a], [list(b), opened]], np.stack([a, b, c]),
        torch.from_numpy(np.stack([a, b, c])), [torch.from_numpy(a), b, opened], ([a, None], [], [b, c]),
    ]  # fmt: skip
    for videos in batches:
        found = [[int(rgb_of(frame)[0, 0, 0]) for frame in frames_of(video)] for video in flat_videos(videos)]
        assert found == [[1, 1], [2, 2], [3, 3]]
    for alone in (c, opened, list(c), [c], [opened]):
        (video,) = flat_videos(alone)
        assert len(list(frames_of(video))) == 2
    for frame in (c[0], opened[0]):  # a single frame is a video too
        (video,) = flat_videos(frame)
        assert len(list(frames_of(video))) == 1


def test_names_are_videos_in_two_lists_and_frames_in_three() -> None:
    assert flat_videos("a.mp4") == ["a.mp4"] and flat_videos(["a.mp4", Path("b.mp4")]) == ["a.mp4", Path("b.mp4")]
    assert flat_videos([["a.mp4"], ["b.mp4", "c.mp4"]]) == ["a.mp4", "b.mp4", "c.mp4"]
    assert flat_videos([[["0.png", "1.png"]], ["b.mp4"]]) == [["0.png", "1.png"], "b.mp4"]


def test_a_video_file_gives_the_frames_of_ask_and_of_training(clip: MakeClip, served: str, tmp_path: Path) -> None:
    path = clip(40, name="a.mp4")
    expected = list(frames_at(path, 1.0))
    assert len(expected) > 1
    for video in (path, str(path), f"{served}/a.mp4"):
        assert all(map(np.array_equal, frames_of(video), expected))
        assert len(list(frames_of(video))) == len(expected)
    assert len(list(frames_of(path, fps=2.0))) == len(list(frames_at(path, 2.0))) > len(expected)
    assert len(list(frames_of(path, num_frames=2))) == 2


def test_frames_are_chosen_at_equal_distances() -> None:
    frames = list(range(10))
    assert list(frames_of(frames, num_frames=3)) == [1, 5, 8] and list(frames_of(frames, num_frames=1)) == [5]
    assert list(frames_of(frames, num_frames=10)) == list(frames_of(frames, num_frames=99)) == frames


@pytest.mark.parametrize(
    ("video", "choice", "message"),
    [
        ([1], {"fps": 1.0, "num_frames": 1}, "fps=1.0: num_frames=1 is given too; allowed is one of them"),
        ([1], {"fps": 1.0}, "fps=1.0: the rate of frames that are given is not known; allowed is num_frames"),
        ([1], {"num_frames": 0}, "num_frames=0: allowed are 1 and above"),
        ([], {}, "videos: a video has no frame"),
        ("lost.mp4", {}, "lost.mp4: No such file or directory"),
    ],
)
def test_frames_that_cannot_be_chosen(video: Any, choice: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(frames_of(video, **choice))


@pytest.mark.parametrize("videos", [3, {"a": 1}, [[3]]])
def test_what_is_no_video(videos: Any) -> None:
    with refuses("videos"):
        flat_videos(videos)


def test_a_video_that_stops_early_says_so(
    clip: MakeClip, tmp_path: Path, served: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = clip(80, name="a.mkv")
    whole = len(list(frames_of(path)))
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) * 6 // 10])
    with caplog.at_level(logging.WARNING):
        assert 0 < len(list(frames_of(path))) < whole
        assert 0 < len(list(frames_of(f"{served}/a.mkv"))) < whole
    assert [record.getMessage().split(": ")[0] for record in caplog.records] == [str(path), f"{served}/a.mkv"]
    (tmp_path / "b.mp4").write_text("no video")
    for name in (str(tmp_path / "b.mp4"), f"{served}/b.mp4"):
        with pytest.raises(UserError, match=f"^{name}: "):
            list(frames_of(name))


def test_an_image_whose_file_was_closed() -> None:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG")
    image = Image.open(buffer)
    buffer.close()
    with pytest.raises(UserError, match="^images: image cannot be decoded"):
        rgb_of(image)
