"""Split an image into the views that the vision tower encodes. Training and inference both use this module.

    mode     views of an image (REFERENCE section 1)                    of a frame of a video
    square   the image, from which the image processor crops the        the same
             center: what is outside is lost
    pad      a square of the mean color with the image in its           the same
             center, as LLaVA's "pad": nothing is lost
    hd       that square, its side made even, in quarters row by row,   the square
             then as a whole: the quarters leave no pixel out

Each view is then resized and cropped to the vision tower's size, with the caller's own resize method. For example
640x480 gives in mode `hd` four views of 320x320 and one of 640x640, whose first and last 80 rows are of the mean color.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llava_mini.errors import UserError

ViewMode = Literal["square", "pad", "hd"]
Color = tuple[int, int, int]
NUM_VIEWS: Mapping[ViewMode, int] = {"square": 1, "pad": 1, "hd": 5}  # per image; a frame of a video has one

_MOST_PIXELS = 178_956_970  # of a resized view: the most that Pillow allows for an image
_LARGEST_SIDE = 13_377  # of a padded square, which then has the most pixels that Pillow allows for an image


def check_mode(mode: str) -> None:
    """Raise UserError for an unknown mode."""
    if mode not in NUM_VIEWS:
        allowed = ", ".join(NUM_VIEWS)
        raise UserError(f"views={mode!r}; allowed: {allowed}", key="views", value=mode, allowed=allowed)


def mean_color(image_mean: Sequence[float]) -> Color:
    """Return the RGB color of an image processor's `image_mean`, rounded as LLaVA rounds it."""
    red, green, blue = (int(255 * value) for value in image_mean)
    return red, green, blue


def views_of(
    image: NDArray[np.uint8], mode: ViewMode, background: Color, *, is_video: bool = False
) -> list[NDArray[np.uint8]]:
    """Return the views of an image [H, W, 3], each [h, w, 3]. They may share its memory.

    Args:
        image: RGB image.
        mode: View mode.
        background: RGB color around images that are not square.
        is_video: Whether the image is a frame of a video.

    Raises:
        UserError: the padded square would be too large.
    """
    if mode == "square":
        return [image]
    square = _squared(image, background, even=mode == "hd")
    if mode == "pad" or is_video:
        return [square]
    half = len(square) // 2
    return [*(square[y : y + half, x : x + half] for y in (0, half) for x in (0, half)), square]


def resized_longer(width: int, height: int, shorter: int) -> int:
    """Return the longer side of a view whose shorter side is resized to `shorter`, rounded as CLIP's processor does.

    Raises:
        UserError: the resized view would fill the memory, as a line of pixels grows in both directions.
    """
    longer = int(shorter * max(width, height) / min(width, height))
    if shorter * longer > _MOST_PIXELS:
        raise UserError(f"image of {width}x{height} pixels is too elongated to be resized to {shorter} pixels")
    return longer


def _squared(image: NDArray[np.uint8], background: Color, *, even: bool) -> NDArray[np.uint8]:
    """Return the image in the center of a square of the background color; the image itself if it needs no padding."""
    height, width = image.shape[:2]
    side = max(height, width)
    side += side % 2 if even else 0
    if side > _LARGEST_SIDE:
        raise UserError(f"image of {width}x{height} pixels is too large to be padded to a square")
    if height == width == side:
        return image
    row = np.tile(np.array(background, np.uint8), side)  # whole rows are copied faster than single pixels
    square = np.tile(row, (side, 1)).reshape(side, side, 3)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = image
    return square
