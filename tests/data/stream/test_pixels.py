"""Pixels are those of CLIP's processor within 2/255 and of Pillow's resizing; padded views lose no pixel."""

import io
import itertools
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from llava_mini.data.stream.pixels import CLIP_GRAY, PixelTransform, normalized
from llava_mini.errors import SampleError, UserError
from llava_mini.views import NUM_VIEWS, ViewMode

Pixels = NDArray[np.uint8]
MODES: list[ViewMode] = ["square", "pad", "hd"]
KINDS: dict[str, Callable[[int, int], Pixels]] = {}


def kind(make: Callable[[int, int], Pixels]) -> Callable[[int, int], Pixels]:
    KINDS[make.__name__] = make
    return make


@kind
def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(height + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@kind
def edges(height: int, width: int) -> Pixels:
    """Nothing but the hardest edges, where bytes are clipped between the two passes of resizing."""
    return np.where(noise(height, width) > 127, np.uint8(255), np.uint8(0))


@kind
def smooth(height: int, width: int) -> Pixels:
    small = Image.fromarray(noise(2 + height // 40, 2 + width // 40))
    return np.array(small.resize((width, height), Image.Resampling.BICUBIC))


def png(pixels: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def clip(size: int) -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def as_bytes(pixels: Tensor, processor: CLIPImageProcessorPil) -> Tensor:
    """Normalized pixels on the scale of 0 to 255, with what is behind the point."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    return (pixels * std + mean) * 255


SIZES = [(48, 64), (64, 48), (33, 47), (200, 131), (150, 1100), (745, 371), (24, 24), (30, 5), (7, 200), (1, 1), (1, 9)]


def name_of(value: Any) -> str:
    return getattr(value, "__name__", str(value))


# Every size with one kind of image, every kind with several sizes.
EACH_SIZE = pytest.mark.parametrize(
    ("make", "size"),
    list(zip(itertools.cycle(KINDS.values()), SIZES)),
    ids=name_of,
)


@EACH_SIZE
def test_square_is_clips_own_processing_within_two_steps(make: Callable[..., Pixels], size: tuple[int, int]) -> None:
    pixels, processor = make(*size), clip(24)
    transform = PixelTransform.from_image_processor(processor)
    ours = transform([png(pixels)])
    assert (ours.shape, ours.dtype) == ((1, 1, 3, 24, 24), torch.uint8)
    ours_normalized = normalized(ours, processor.image_mean, processor.image_std)[0, 0]
    theirs = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
    assert ours_normalized.dtype == theirs.dtype == torch.float32
    assert (as_bytes(ours_normalized, processor) - as_bytes(theirs, processor)).abs().max() <= 2 + 1e-3


@EACH_SIZE
def test_siglips_pictures_are_its_own_processing_within_two_steps(
    make: Callable[..., Pixels], size: tuple[int, int]
) -> None:
    """The whole picture in a square, whatever its shape; values from -1 to 1."""
    pixels, processor = make(*size), SiglipImageProcessorPil(size={"height": 24, "width": 24})
    transform = PixelTransform.from_image_processor(processor)
    ours = normalized(transform([png(pixels)]), processor.image_mean, processor.image_std)[0, 0]
    theirs = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
    assert ours.shape == theirs.shape == (3, 24, 24) and theirs.min() >= -1 and theirs.max() <= 1
    assert (as_bytes(ours, processor) - as_bytes(theirs, processor)).abs().max() <= 2 + 1e-3
    assert transform.around == (127, 127, 127)


@pytest.mark.parametrize(
    ("make", "size"), [(noise, (480, 640)), (edges, (800, 333)), (smooth, (301, 299)), (edges, (100, 150))], ids=name_of
)
def test_nearly_every_value_equals_pillows(make: Callable[..., Pixels], size: tuple[int, int]) -> None:
    pixels = make(*size)
    rows, columns = (336, int(336 * size[1] / size[0])) if size[0] < size[1] else (int(336 * size[0] / size[1]), 336)
    resized = np.asarray(Image.fromarray(pixels).resize((columns, rows), Image.Resampling.BICUBIC)).astype(int)
    top, left = (rows - 336) // 2, (columns - 336) // 2
    theirs = resized[top : top + 336, left : left + 336]
    ours = PixelTransform(336)([png(pixels)])[0, 0].permute(1, 2, 0).numpy()
    difference = np.abs(ours - theirs)
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.05
    assert (difference > 1).mean() < 0.0005


def test_what_needs_no_resizing_is_untouched() -> None:
    pixels = noise(24, 31)
    assert np.array_equal(PixelTransform(24)([png(pixels)])[0, 0].permute(1, 2, 0), pixels[:, 3:27])


def padded(pixels: Pixels, side: int) -> Image.Image:
    """By Pillow, as LLaVA does it."""
    image = Image.fromarray(pixels)
    square = Image.new("RGB", (side, side), CLIP_GRAY)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pad_and_hd_are_clips_processing_of_the_padded_square(size: tuple[int, int]) -> None:
    pixels, processor = noise(*size), clip(24)
    cases: list[tuple[ViewMode, int]] = [("pad", max(size)), ("hd", max(size) + max(size) % 2)]
    for mode, side in cases:
        square, half = padded(pixels, side), side // 2
        corners = [(0, 0), (half, 0), (0, half), (half, half)] if mode == "hd" else []
        parts = [square.crop((x, y, x + half, y + half)) for x, y in corners]
        ours = normalized(PixelTransform(24, mode)([png(pixels)]), processor.image_mean, processor.image_std)[0]
        theirs = processor([*parts, square], return_tensors="pt")["pixel_values"]
        assert ours.shape == theirs.shape == (NUM_VIEWS[mode], 3, 24, 24)
        assert (as_bytes(ours, processor) - as_bytes(theirs, processor)).abs().max() <= 2 + 1e-3


def test_the_background_is_the_processors_mean_color() -> None:
    processor = CLIPImageProcessorPil(**{**clip(8).to_dict(), "image_mean": [0.5, 0.25, 1.0]})
    views = PixelTransform.from_image_processor(processor, "pad")([png(noise(4, 8))])
    assert views[0, 0, :, 0, 0].tolist() == [127, 63, 255]
    assert PixelTransform.from_image_processor(clip(8), "pad").around == CLIP_GRAY == PixelTransform(8).around


@pytest.mark.parametrize("mode", ["pad", "hd"])
@pytest.mark.parametrize("size", [(5, 7), (9, 9), (1, 6), (1, 1)], ids=str)
def test_every_pixel_of_the_picture_is_in_some_view(mode: ViewMode, size: tuple[int, int]) -> None:
    """In high resolution already in one of the crops, also where sides are odd."""
    transform = PixelTransform(12, mode)
    black = np.zeros((*size, 3), np.uint8)
    before = transform([png(black)])
    for row in {0, size[0] // 2, size[0] - 1}:  # edges, and where the quarters of a view meet
        for column in {0, size[1] // 2, size[1] - 1}:
            changed = black.copy()
            changed[row, column] = 255
            difference = (transform([png(changed)]) != before)[0].flatten(1).any(1)
            assert difference.all() if mode == "pad" else difference[:4].any() and difference[4]


def test_quarters_lie_row_by_row_before_the_whole() -> None:
    corners = np.zeros((8, 8, 3), np.uint8)
    corners[:4, :4], corners[:4, 4:], corners[4:, :4], corners[4:, 4:] = 10, 20, 30, 40
    views = PixelTransform(8, "hd")([png(corners)])[0].float()
    assert views[:4].mean((1, 2, 3)).tolist() == [10, 20, 30, 40]
    assert np.array_equal(views[4].permute(1, 2, 0), corners)


@pytest.mark.parametrize("mode", MODES)
def test_pictures_of_all_sizes_are_put_in_order_into_one_tensor(mode: ViewMode) -> None:
    pictures = [png(noise(20, 30)), png(noise(9, 9)[..., 0]), png(noise(1, 1))]
    transform = PixelTransform(16, mode)
    together = transform(pictures)
    assert together.shape == (3, transform.num_views, 3, 16, 16)
    assert together.is_contiguous()
    for picture, views in zip(pictures, together, strict=True):
        assert torch.equal(transform([picture])[0], views)
    assert transform([]).shape == (0, transform.num_views, 3, 16, 16)
    assert torch.equal(transform(pictures, is_video=True), together[:, -1:])


def test_a_grey_picture_is_grey_and_one_pixel_fills_the_view() -> None:
    gray, pixel = PixelTransform(16)([png(noise(9, 9)[..., 0]), png(np.full((1, 1, 3), [1, 2, 3], np.uint8))])
    assert torch.equal(gray[0, 0], gray[0, 1]) and torch.equal(gray[0, 0], gray[0, 2])
    assert (pixel[0] == torch.tensor([1, 2, 3])[:, None, None]).all()


def test_pictures_that_would_fill_the_memory_are_refused() -> None:
    line = png(np.zeros((1, 20_000, 3), np.uint8))
    for mode in MODES:
        with pytest.raises(SampleError, match="image of 20000x1 pixels is too (elongated|large)"):
            PixelTransform(336, mode)([line])
    assert PixelTransform(4)([line]).shape == (1, 1, 3, 4, 4)


def test_it_travels_to_spawned_workers() -> None:
    code = "import pickle, sys; transforms, raw = pickle.load(sys.stdin.buffer)\n"
    code += "sys.stdout.buffer.write(b''.join(transform([raw]).numpy().tobytes() for transform in transforms))"
    transforms, raw = [PixelTransform(16, mode) for mode in MODES], png(noise(20, 30))
    sent = pickle.dumps((transforms, raw))
    found = subprocess.run([sys.executable, "-c", code], input=sent, stdout=subprocess.PIPE, check=True).stdout
    assert found == b"".join(transform([raw]).numpy().tobytes() for transform in transforms)


def test_bytes_are_normalized_as_clip_does() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(6).view(2, 1, 3, 16, 16)
    mean, std = (0.5, 0.25, 0.1), (0.2, 0.3, 0.4)
    expected = torch.stack([(pixels[:, :, c].double() / 255 - mean[c]) / std[c] for c in range(3)], dim=2)
    ours = normalized(pixels, mean, std)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match=r"torch.float32, not torch.uint8"):
        normalized(ours, mean, std)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resample": 2}, "resample=2; only 3"),
        ({"do_center_crop": False}, "do_center_crop=False; only True"),
        ({"do_resize": False}, "do_resize=False; only True"),
        ({"do_normalize": False}, "do_normalize=False; only True"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor=0.0078"),
        ({"crop_size": {"height": 24, "width": 20}}, "crop_size={'height': 24, 'width': 20}; only"),
        ({"crop_size": {"height": 20, "width": 20}}, "crop_size={'height': 20, 'width': 20}; only"),
        ({"size": {"height": 24, "width": 24}}, "do_center_crop=True; only False"),
        ({"size": {"height": 24, "width": 20}}, "size={'height': 24, 'width': 20}; only a shortest_edge or a square"),
        ({"size": {"shortest_edge": 24, "longest_edge": 48}}, "only a shortest_edge or a square can be mirrored"),
    ],
)
def test_a_processor_that_cannot_be_mirrored_is_named(change: dict[str, Any], message: str) -> None:
    processor = CLIPImageProcessorPil(**{**clip(24).to_dict(), **change})
    with pytest.raises(UserError, match="image processor: .*" + message):
        PixelTransform.from_image_processor(processor)


def test_impossible_arguments_are_named() -> None:
    with pytest.raises(UserError, match="views='tile'; allowed: square, pad, hd"):
        PixelTransform(24, "tile")
    with pytest.raises(UserError, match="size=0"):
        PixelTransform(0)
