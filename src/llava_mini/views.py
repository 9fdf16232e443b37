"""A picture to the views that the vision tower reads; the one place that says how, for training and inference alike.

    mode     views of an image (REFERENCE section 1)                    of a frame of a video
    square   the picture, of which the image processor cuts out the     the same
             middle: what lies outside is lost
    pad      a square of the mean colour with the picture in its        the same
             middle, as LLaVA's "pad": nothing is lost
    hd       that square, its side made even, in quarters row by row,   the square
             then as a whole: the quarters leave no pixel out

Each view is then resized and cut to the vision tower's size, by whatever the caller resizes with. For example 640x480
gives in mode `hd` four views of 320x320 and one of 640x640, whose first and last 80 rows are of the mean colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llava_mini.errors import UserError

ViewMode = Literal["square", "pad", "hd"]
Colour = tuple[int, int, int]
NUM_VIEWS: Mapping[ViewMode, int] = {"square": 1, "pad": 1, "hd": 5}  # of an image; a frame of a video has one

_MOST_PIXELS = 178_956_970  # of a resized view: as many as Pillow lets a picture have
_LARGEST_SIDE = 13_377  # of a padded square, which then has as many pixels as Pillow lets a picture have


def check_mode(mode: str) -> None:
    """Raises UserError for a mode that is none."""
    if mode not in NUM_VIEWS:
        raise UserError(f"views={mode!r}; allowed: {', '.join(NUM_VIEWS)}")


def mean_colour(image_mean: Sequence[float]) -> Colour:
    """RGB of an image processor's `image_mean`, rounded as LLaVA rounds it."""
    red, green, blue = (int(255 * value) for value in image_mean)
    return red, green, blue


def views_of(
    picture: NDArray[np.uint8], mode: ViewMode, background: Colour, *, is_video: bool = False
) -> list[NDArray[np.uint8]]:
    """The views of a picture [H, W, 3], each [h, w, 3]; they may share its memory.

    Args:
        picture: RGB.
        mode: How it becomes views.
        background: RGB around pictures that are not square.
        is_video: Whether it is a frame of a video.

    Raises:
        UserError: its square would be too large.
    """
    if mode == "square":
        return [picture]
    square = _squared(picture, background, even=mode == "hd")
    if mode == "pad" or is_video:
        return [square]
    half = len(square) // 2
    return [*(square[y : y + half, x : x + half] for y in (0, half) for x in (0, half)), square]


def resized_longer(width: int, height: int, shorter: int) -> int:
    """Pixels of a view's longer side when its shorter one is resized to `shorter`, rounded as CLIP's processor does.

    Raises:
        UserError: so many would fill the memory; a line of pixels grows in both directions.
    """
    longer = int(shorter * max(width, height) / min(width, height))
    if shorter * longer > _MOST_PIXELS:
        raise UserError(f"image of {width}x{height} pixels is too elongated to be resized to {shorter} pixels")
    return longer


def _squared(picture: NDArray[np.uint8], background: Colour, *, even: bool) -> NDArray[np.uint8]:
    """The picture in the middle of a square of the background's colour; itself if it is one."""
    height, width = picture.shape[:2]
    side = max(height, width)
    side += side % 2 if even else 0
    if side > _LARGEST_SIDE:
        raise UserError(f"image of {width}x{height} pixels is too large to be padded to a square")
    if height == width == side:
        return picture
    row = np.tile(np.array(background, np.uint8), side)  # whole rows are copied faster than single pixels
    square = np.tile(row, (side, 1)).reshape(side, side, 3)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = picture
    return square
