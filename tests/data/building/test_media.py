"""Files become members of a sample: originals byte for byte, or smaller; nothing outside of the folder is read."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from llava_mini.data.building.media import media_members, stored_image
from llava_mini.data.building.plan import Options
from llava_mini.errors import SampleError
from llava_mini.media.images import decode_image

MakePicture = Callable[..., bytes]


@pytest.fixture
def options(tmp_path: Path) -> Callable[..., Options]:
    """options(**changes): of the folders `images` and `videos`."""
    for folder in ("images", "videos"):
        (tmp_path / folder).mkdir(exist_ok=True)

    def make(**changes: Any) -> Options:
        folders = {"images": tmp_path / "images", "videos": tmp_path / "videos"}
        return Options(**{**folders, **changes})

    return make


def test_no_one_and_several_images(options: Callable[..., Options], tmp_path: Path, picture: MakePicture) -> None:
    for number in range(3):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(picture(number))
    assert media_members({"conversations": []}, options()) == {}
    assert media_members({"image": None}, options()) == {}
    assert media_members({"image": "1.jpg"}, options()) == {"jpg": picture(1)}
    assert media_members({"image": ["1.jpg"]}, options()) == {"jpg": picture(1)}
    several = media_members({"image": ["2.jpg", "0.jpg"]}, options())
    assert several == {"000000.jpg": picture(2), "000001.jpg": picture(0)}


@pytest.mark.parametrize(
    ("encoding", "mode", "extension"),
    [
        ("JPEG", "RGB", "jpg"),
        ("JPEG", "L", "jpg"),
        ("JPEG", "CMYK", "jpg"),
        ("PNG", "RGB", "png"),
        ("PNG", "P", "png"),
        ("PNG", "RGBA", "png"),
        ("PNG", "I;16", "png"),
        ("WEBP", "RGB", "webp"),
    ],
)
def test_originals_are_kept_under_the_extension_of_their_content(
    picture: MakePicture, encoding: str, mode: str, extension: str
) -> None:
    raw = picture(1, encoding=encoding, mode="L" if mode == "I;16" else mode)
    if mode == "I;16":
        raw = saved(Image.fromarray(np.arange(48 * 32, dtype=np.uint16).reshape(32, 48) * 40), "PNG")
    assert stored_image(raw, None) == (extension, raw)
    assert stored_image(raw, 32) == (extension, raw)  # the shorter side has 32 pixels already


@pytest.mark.parametrize("encoding", ["GIF", "BMP", "TIFF"])
def test_other_formats_become_png_without_loss(picture: MakePicture, encoding: str) -> None:
    raw = picture(1, encoding=encoding)
    extension, content = stored_image(raw, None)
    assert extension == "png"
    assert np.array_equal(decode_image(content), decode_image(raw))


def test_what_is_written_anew_is_on_the_background_and_what_is_kept_keeps_its_transparency() -> None:
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    for raw, resize in ((saved(clear, "TIFF"), None), (saved(clear, "PNG"), 20)):
        for color in ((255, 255, 255), (0, 9, 0)):
            extension, content = stored_image(raw, resize, color)
            assert extension == "png" and decode_image(content, (1, 1, 1))[5, 5].tolist() == list(color)
    kept = saved(clear, "PNG")
    assert stored_image(kept, None, (0, 0, 0)) == ("png", kept)


@pytest.mark.parametrize(("encoding", "extension"), [("GIF", "png"), ("WEBP", "webp"), ("PNG", "png")])
def test_of_an_animation_the_first_frame_is_read(picture: MakePicture, encoding: str, extension: str) -> None:
    frames = [Image.open(io.BytesIO(picture(seed, encoding="PNG"))) for seed in (1, 2)]
    raw = saved(
        frames[0],
        encoding,
        save_all=True,
        append_images=frames[1:],
        **({} if encoding == "GIF" else {"lossless": True}),
    )
    found, content = stored_image(raw, None)
    assert found == extension
    first = np.asarray(frames[0]).astype(int)
    assert np.abs(decode_image(content).astype(int) - first).mean() < 12 < np.abs(np.asarray(frames[1]) - first).mean()


@pytest.mark.parametrize(("encoding", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "png")])
@pytest.mark.parametrize(("size", "expected"), [((200, 100), (64, 32)), ((100, 333), (32, 106)), ((33, 33), (32, 32))])
def test_resize_bounds_the_shorter_side(
    picture: MakePicture, encoding: str, extension: str, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    found, content = stored_image(picture(3, size, encoding), 32)
    assert found == extension
    image = Image.open(io.BytesIO(content))
    assert image.size == expected
    if extension == "jpg":
        assert isinstance(image, JpegImageFile) and image.quantization[0][0] <= 2  # quality 95


def test_pictures_are_never_enlarged(picture: MakePicture) -> None:
    raw = picture(1, (40, 30))
    assert stored_image(raw, 31) == ("jpg", raw)


def test_a_picture_that_is_made_smaller_is_upright(picture: MakePicture) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    raw = picture(1, (96, 64), exif=exif)
    assert stored_image(raw, None) == ("jpg", raw)
    _, content = stored_image(raw, 32)
    image = Image.open(io.BytesIO(content))
    assert image.size == (32, 48) and not image.getexif()
    small = np.asarray(Image.fromarray(decode_image(raw)).resize((32, 48), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(np.asarray(image) - small).mean() < 4


def test_a_smaller_jpeg_is_about_what_resizing_the_original_gives() -> None:
    """What the documentation says about stored pictures: pixels shift by about 3/255."""
    noise = np.random.default_rng(0).standard_normal((480, 640, 3)).cumsum(0).cumsum(1)
    pixels = ((noise - noise.min()) / np.ptp(noise) * 255).astype(np.uint8)
    raw = saved(Image.fromarray(pixels), "JPEG", quality=90)
    direct = np.asarray(Image.fromarray(decode_image(raw)).resize((448, 336), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(decode_image(stored_image(raw, 336)[1]).astype(int) - direct).mean() < 3


def test_small_jpegs_keep_the_resolution_of_their_colors(picture: MakePicture) -> None:
    raw = picture(0, size=(400, 300), encoding="JPEG")
    sampling = {side: simplejpeg.decode_jpeg_header(stored_image(raw, side)[1])[3] for side in (64, 127, 128, 200)}
    assert sampling == {64: "444", 127: "444", 128: "420", 200: "420"}


def test_videos_become_jpeg_frames(options: Callable[..., Options], tmp_path: Path, clip: Callable[..., bytes]) -> None:
    (tmp_path / "videos" / "a.mp4").write_bytes(clip(3, size=(128, 96)))
    found = media_members({"video": "a.mp4"}, options())
    assert list(found) == ["000000.jpg", "000001.jpg", "000002.jpg"]
    means = [decode_image(raw).mean() for raw in found.values()]
    assert means == sorted(means) and means[2] - means[0] > 10
    assert len(media_members({"video": "a.mp4"}, options(fps=2.0))) == 6
    assert decode_image(found["000000.jpg"]).shape == (96, 128, 3)
    small = media_members({"video": ["a.mp4"]}, options(resize=48))
    assert decode_image(small["000000.jpg"]).shape == (48, 64, 3)


def test_frames_have_336_pixels_at_most_unless_told_otherwise(
    options: Callable[..., Options], tmp_path: Path, clip: Callable[..., bytes]
) -> None:
    (tmp_path / "videos" / "a.mp4").write_bytes(clip(1, rate=2, size=(800, 400)))
    assert decode_image(media_members({"video": "a.mp4"}, options())["000000.jpg"]).shape == (336, 672, 3)
    assert decode_image(media_members({"video": "a.mp4"}, options(resize=399))["000000.jpg"]).shape == (399, 798, 3)


def test_a_clip_shorter_than_a_period_gives_one_frame(
    options: Callable[..., Options], tmp_path: Path, clip: Callable[..., bytes]
) -> None:
    (tmp_path / "videos" / "a.mp4").write_bytes(clip(0.5))
    assert list(media_members({"video": "a.mp4"}, options())) == ["000000.jpg"]


@pytest.fixture
def outside(tmp_path: Path, picture: MakePicture) -> Path:
    """A picture beside the images' folder, and in that folder links to it and to its folder."""
    images = tmp_path / "images"
    images.mkdir(exist_ok=True)
    (tmp_path / "images-of-another").mkdir()
    secret = tmp_path / "images-of-another" / "secret.jpg"
    secret.write_bytes(picture(1))
    (images / "link.jpg").symlink_to(secret)
    (images / "folder").symlink_to(secret.parent)
    (images / "own.jpg").write_bytes(picture(2))
    (images / "inner.jpg").symlink_to(images / "own.jpg")
    (images / "in").symlink_to(".")
    (images / "loop.jpg").symlink_to(images / "loop.jpg")
    os.mkfifo(images / "pipe.jpg")
    return secret


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (
            {"image": "https://host/a.jpg"},
            "image named by a URL, and no folder `fetch` to download it to was given: https://host/a.jpg",
        ),
        ({"images": ["own.jpg", "data:image/png;base64,AAAA"]}, "image named by a URL.*: data:image/png"),
        ({"video": "s3://bucket/a.mp4"}, "video named by a URL"),
        ({"image": "FILE:///a.jpg"}, "image named by a URL"),
        ({"image": "https://name:word@host/a.jpg"}, r"image named by a URL.*: https://\*\*\*@host/a.jpg"),
    ],
)
def test_urls_are_rejected_unless_they_are_to_be_downloaded(
    options: Callable[..., Options], tmp_path: Path, picture: MakePicture, record: dict[str, Any], reason: str
) -> None:
    (tmp_path / "images" / "own.jpg").write_bytes(picture(0))
    for folders in ({}, {"images": None, "videos": None}):
        with pytest.raises(SampleError, match=reason if not folders else "no folder of images|named by a URL"):
            media_members(record, options(**folders))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../images-of-another/secret.jpg", "image outside of the folder of images: ../images-of"),
        ("x/../../images-of-another/secret.jpg", "image outside of the folder of images"),
        ("{outside}", "image outside of the folder of images: /"),
        ("/etc/passwd", "image outside of the folder of images: /etc/passwd"),
        ("folder/../images-of-another/secret.jpg", "image outside of the folder of images: folder/../"),
        (
            "link.jpg",
            r"image after a link .* of the folder of images, which only `follow_links` allows: link.jpg \(link",
        ),
        ("folder/secret.jpg", r".*`follow_links` allows: folder/secret.jpg \(folder -> /.*/images-of-another\)$"),
        ("in/folder/secret.jpg", r".*`follow_links` allows: in/folder/secret.jpg \(in/folder -> /.*another\)$"),
        ("nothing.jpg", r"missing image \(No such file or directory\): nothing.jpg"),
        ("own.jpg/x", r"missing image \(Not a directory\): own.jpg/x"),
        ("loop.jpg", r"missing image \(Too many levels of symbolic links\): loop.jpg"),
        ("a" * 300, r"missing image \(File name too long\)"),
        ("a\0b.jpg", "image of an impossible name"),
        ("\ud83d.jpg", "image of an impossible name"),
        ("pipe.jpg", "image that is no file: pipe.jpg"),
        (".", "image that is no file"),
    ],
)
def test_names_lead_to_files_of_the_folder_or_nowhere(
    options: Callable[..., Options], outside: Path, name: str, reason: str
) -> None:
    with pytest.raises(SampleError, match=f"^{reason}"):
        media_members({"image": name.replace("{outside}", str(outside))}, options())


def test_links_and_absolute_names_within_the_folder_are_followed(
    options: Callable[..., Options], outside: Path, tmp_path: Path, picture: MakePicture
) -> None:
    for name in ("own.jpg", "inner.jpg", "./own.jpg", "x/../own.jpg", str(tmp_path / "images" / "own.jpg")):
        assert media_members({"image": name}, options()) == {"jpg": picture(2)}


def test_links_out_of_the_folder_are_followed_where_that_is_allowed(
    options: Callable[..., Options], outside: Path, tmp_path: Path, picture: MakePicture, clip: Callable[..., bytes]
) -> None:
    for name in ("link.jpg", "folder/secret.jpg", "in/folder/secret.jpg"):
        assert media_members({"image": name}, options(follow_links=True)) == {"jpg": picture(1)}
    assert media_members({"image": "own.jpg"}, options(follow_links=True)) == {"jpg": picture(2)}
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "a.mp4").write_bytes(clip(1))
    (tmp_path / "videos" / "far").symlink_to(tmp_path / "films")
    assert list(media_members({"video": "far/a.mp4"}, options(follow_links=True))) == ["000000.jpg"]
    with pytest.raises(
        SampleError, match="^video after a link that leads out of the folder of videos, which only `follow_links`"
    ):
        media_members({"video": "far/a.mp4"}, options())


@pytest.mark.parametrize(
    "name", ["../images-of-another/secret.jpg", "folder/../images-of-another/secret.jpg", "{outside}", "/etc/passwd"]
)
def test_dots_and_absolute_names_lead_nowhere_even_where_links_are_followed(
    options: Callable[..., Options], outside: Path, name: str
) -> None:
    with pytest.raises(SampleError, match="^image outside of the folder of images: "):
        media_members({"image": name.replace("{outside}", str(outside))}, options(follow_links=True))


def test_a_folder_that_was_not_given_is_named(options: Callable[..., Options]) -> None:
    with pytest.raises(SampleError, match="no folder of images was given: a.jpg"):
        media_members({"image": "a.jpg"}, options(images=None))
    with pytest.raises(SampleError, match="no folder of videos was given: a.mp4"):
        media_members({"video": "a.mp4"}, options(videos=None))


def test_damaged_files_are_named(
    options: Callable[..., Options], tmp_path: Path, picture: MakePicture, clip: Callable[..., bytes]
) -> None:
    faults: dict[str, tuple[bytes, str]] = {
        "empty.jpg": (b"", "image cannot be decoded: it has no bytes"),
        "text.jpg": (b"<html>not found</html>", "image cannot be decoded: none of JPEG"),
        "short.jpg": (picture(1, (200, 200))[:-300], "image cannot be decoded: image file is truncated"),
        "bomb.png": (bomb(), "image cannot be decoded: Image size (900000000 pixels) exceeds limit of 178956970"),
    }
    for name, (content, reason) in faults.items():
        (tmp_path / "images" / name).write_bytes(content)
        for resize in (None, 32):
            with pytest.raises(SampleError) as caught:
                media_members({"image": name}, options(resize=resize))
            assert str(caught.value).startswith(reason) and str(caught.value).endswith(f"({name})")
    for name, content in {"empty.mp4": b"", "text.mp4": b"no video", "short.mp4": clip(2)[:400]}.items():
        (tmp_path / "videos" / name).write_bytes(content)
        with pytest.raises(SampleError, match=rf"\({name}\)$"):
            media_members({"video": name}, options())


def test_what_would_fill_the_memory_is_refused(
    options: Callable[..., Options], tmp_path: Path, picture: MakePicture, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = picture(1)
    (tmp_path / "images" / "a.jpg").write_bytes(raw)
    monkeypatch.setattr("llava_mini.data.building.media.MOST_BYTES", 2 * len(raw))
    assert len(media_members({"image": ["a.jpg", "a.jpg"]}, options())) == 2
    with pytest.raises(SampleError, match=f"images of more than {2 * len(raw)} bytes"):
        media_members({"image": ["a.jpg"] * 3}, options())
    (tmp_path / "images" / "a.jpg").write_bytes(raw * 3)
    with pytest.raises(SampleError, match=f"image of {3 * len(raw)} bytes, {2 * len(raw)} allowed: a.jpg"):
        media_members({"image": "a.jpg"}, options())


def saved(image: Image.Image, encoding: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, encoding, **options)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of 900 million white pixels in a few hundred bytes: what is behind its header does not matter."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )
