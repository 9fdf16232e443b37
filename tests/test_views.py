"""Training and inference see the same pixels of a picture in every mode; padded views lose no pixel of it."""

import io

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPImageProcessorPil

from llava_mini.data.stream.pixels import PixelTransform, normalized
from llava_mini.data.toyworld.tokenizer import build_tokenizer
from llava_mini.errors import UserError
from llava_mini.models import LlavaMiniProcessor
from llava_mini.views import NUM_VIEWS, ViewMode, mean_color, views_of

GREEN = (10, 200, 30)
MODES: list[ViewMode] = ["square", "pad", "hd"]
SIZES = [(48, 48), (47, 47), (48, 64), (64, 48), (33, 47), (200, 131), (90, 301), (5, 30), (7, 200), (1, 1), (1, 6)]


def picture(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("size", "mode", "is_video"), [*((size, MODES[n % 3], False) for n, size in enumerate(SIZES)),
                                   *(((33, 47), mode, is_video) for mode in MODES for is_video in (False, True))]
)  # fmt: skip
def test_inference_sees_what_training_saw(size: tuple[int, int], mode: ViewMode, is_video: bool) -> None:
    """Within 2/255, by which torch's resizing in training may differ from Pillow's in the processor."""
    images = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    transform = PixelTransform.from_image_processor(images, mode)
    trained = normalized(transform([png(picture(*size))], is_video), images.image_mean, images.image_std)[0]
    image = Image.fromarray(picture(*size))
    given = {"text": "<video>", "videos": [[image]]} if is_video else {"text": "<image>", "images": image}
    seen = LlavaMiniProcessor(images, build_tokenizer(), views=mode)(**given)["pixel_values"][0]
    assert trained.shape == seen.shape == (1 if is_video else NUM_VIEWS[mode], 3, 24, 24)
    allowed = (2 + 1e-3) / 255 / torch.tensor(images.image_std)[:, None, None]
    assert ((trained - seen).abs() <= allowed).all()


def test_a_square_is_left_to_the_image_processor() -> None:
    (view,) = views_of(picture(6, 10), "square", GREEN)
    assert (view == picture(6, 10)).all()


@pytest.mark.parametrize(("size", "corner", "side"), [((6, 10), (2, 0), 10), ((9, 4), (0, 2), 9), ((7, 7), (0, 0), 7)])
def test_padding_lays_the_picture_in_the_middle_of_the_mean_color(
    size: tuple[int, int], corner: tuple[int, int], side: int
) -> None:
    (square,) = views_of(picture(*size), "pad", GREEN)
    expected = np.full((side, side, 3), GREEN, np.uint8)
    expected[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]] = picture(*size)
    assert (square == expected).all()


@pytest.mark.parametrize("size", [(6, 10), (9, 4), (7, 7), (1, 5), (1, 1)], ids=str)
def test_high_resolution_is_four_quarters_row_by_row_and_the_whole(size: tuple[int, int]) -> None:
    parts = views_of(picture(*size), "hd", GREEN)
    side = max(size) + max(size) % 2
    assert [part.shape for part in parts] == [(side // 2, side // 2, 3)] * 4 + [(side, side, 3)]
    top, bottom = np.hstack(parts[:2]), np.hstack(parts[2:4])
    assert (np.vstack([top, bottom]) == parts[4]).all()
    y, x = (side - size[0]) // 2, (side - size[1]) // 2
    assert (parts[4][y : y + size[0], x : x + size[1]] == picture(*size)).all()


@pytest.mark.parametrize("mode", MODES)
def test_frames_of_videos_have_the_last_view_only(mode: ViewMode) -> None:
    (frame,) = views_of(picture(9, 4), mode, GREEN, is_video=True)
    assert (frame == views_of(picture(9, 4), mode, GREEN)[-1]).all()


def test_the_mean_color_is_llavas() -> None:
    assert mean_color(CLIPImageProcessorPil().image_mean) == (122, 116, 104)


def test_a_picture_whose_square_would_fill_the_memory_is_refused() -> None:
    line = np.zeros((1, 13_377, 3), np.uint8)
    with pytest.raises(UserError, match="image of 13377x1 pixels is too large to be padded to a square"):
        views_of(line, "hd", GREEN)  # one more to be even
    with pytest.raises(UserError, match="image of 1x14000 pixels is too large"):
        views_of(np.zeros((14_000, 1, 3), np.uint8), "pad", GREEN)
    assert len(views_of(line, "square", GREEN)) == 1
