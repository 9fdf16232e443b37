"""A PIL image is looked at as its file would be, whatever its mode; one of no use is one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from llava_mini.errors import UserError
from llava_mini.inference.media_source import open_source, pixels_of
from llava_mini.inference.session import Session
from llava_mini.models.visual_inputs import rgb_of


def drawn(mode: str) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(noise.view(np.uint16)[..., 0].copy())
    if mode == "LA":
        return Image.fromarray(noise[..., :2].copy(), "LA")
    return Image.fromarray(noise[..., :3].copy()).convert(mode) if mode != "RGBA" else Image.fromarray(noise)


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("I;16", "a.png"), ("I;16", "a.tiff"), ("L", "a.png"), ("LA", "a.png"), ("P", "a.png"),
        ("RGBA", "a.png"), ("RGBA", "a.webp"), ("CMYK", "a.jpg"), ("CMYK", "a.tiff"), ("RGB", "a.jpg"), ("1", "a.png"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.filterwarnings("error")
def test_an_opened_image_is_seen_as_its_file(
    make_asked: Callable[..., Any], tmp_path: Path, mode: str, name: str, orientation: int
) -> None:
    path, exif = tmp_path / name, Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"transparency": 3} if mode == "P" else {}
    if name == "a.tiff":  # plain ones that are turned are garbled by Pillow 13 itself, where it opens them by name
        options["compression"] = "tiff_lzw"
    drawn(mode).save(path, exif=exif, **options)
    with Image.open(path) as image:
        assert image.mode == mode or name == "a.webp"
        _, processor = make_asked()
        seen = [next(pixels_of(open_source(source), processor, lambda _: 1)) for source in (path, image, [image])]
        (by_path,) = open_source(path).frames
        assert np.array_equal(rgb_of(image, name="image"), rgb_of(by_path))
        assert ("transparency" in image.info) == (mode == "P"), "the user's image must stay as it is"
    assert by_path.size == ((20, 30) if orientation == 6 else (30, 20))
    for each in seen[1:]:
        torch.testing.assert_close(each, seen[0], rtol=0, atol=0)


def test_transparent_parts_are_on_the_processors_background(make_asked: Callable[..., Any], tmp_path: Path) -> None:
    _, processor = make_asked()
    clear = np.zeros((24, 30, 4), np.uint8)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    for color in ([255, 255, 255], [9, 9, 9]):
        processor.background = color
        expected = processor.pixels(np.full((24, 30, 3), color[0], np.uint8))
        for source in (tmp_path / "clear.png", Image.fromarray(clear), clear, clear[None], clear[None][:, :3]):
            (seen,) = next(pixels_of(open_source(source), processor, lambda _: 1))
            torch.testing.assert_close(seen[..., :3, :3], expected[..., :3, :3], rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_values_without_a_known_white_are_refused_in_memory_too(make_asked: Callable[..., Any], mode: str) -> None:
    session = Session(*make_asked())
    for act in (session.add_media, session.push):
        with pytest.raises(UserError, match=f": image of mode {mode}: 32-bit values have no known white"):
            act(Image.new(mode, (30, 20), 7))
    assert not session.media


def test_an_opened_image_whose_file_is_cut_or_closed(
    make_asked: Callable[..., Any], pictures: Path, tmp_path: Path
) -> None:
    session = Session(*make_asked())
    (tmp_path / "short.png").write_bytes((pictures / "0.png").read_bytes()[:1000])
    with Image.open(pictures / "1.png") as closed:
        pass
    for act in (session.add_media, session.push, lambda image: session.add_media([image])):
        for image in (Image.open(tmp_path / "short.png"), closed):
            with pytest.raises(UserError, match=": image cannot be decoded: ") as error:
                act(image)
            assert "\n" not in str(error.value)
    assert not session.media and not len(session.store)
