"""Encoded pictures to the vision tower's pixels as bytes, and bytes to normalised floats on whatever device.

Resizing is torch's bicubic on bytes, at a quarter of the cost of Pillow's. Its weights are rounded to 16 bits: about
one value in 150 differs from Pillow's by 1/255, very few by 2/255 and none by more (tested). A quarter of the memory of
floats is kept, copied between processes and sent to a device, where `normalised` makes floats of it.

Shapes: F pictures, V views of each, S x S pixels of a view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from llava_mini.data.errors import SampleError
from llava_mini.data.images import MAX_PIXELS, decode_image
from llava_mini.errors import UserError

ViewMode = Literal["square", "pad", "hd"]
NUM_VIEWS: Mapping[ViewMode, int] = {"square": 1, "pad": 1, "hd": 5}

CLIP_GRAY = (122, 116, 104)  # CLIP's mean colour, with which LLaVA pads
_BICUBIC = 3  # PIL.Image.Resampling.BICUBIC


class ImageProcessor(Protocol):
    """An image processor of transformers."""

    def to_dict(self) -> dict[str, Any]: ...


class PixelTransform:
    """Encoded pictures to bytes [F, V, 3, S, S].

    - `square`: the shorter side becomes S and the middle is cut out, as CLIP does; what lies outside is lost. V = 1.
    - `pad`: the picture is laid in the middle of a square of the background's colour, then resized, as LLaVA's
      "pad" does; nothing is lost. V = 1.
    - `hd`: so too, with an even side; its four quarters row by row, then the whole square. The quarters are one
      picture of 2S x 2S without gaps: every pixel is in one of them, whatever the size. V = 5.

    For example 640x480 at S = 336: `square` resizes to 448x336 and keeps columns 56-391; `pad` resizes a square of
    640x640 whose first and last 80 rows are background; `hd` cuts that square into quarters of 320x320. Of square
    pictures with an even side all this is what `views.ImageTransform` makes of them.

    Args:
        size: S.
        mode: How a picture becomes views.
        background: RGB around pictures that are not square.

    Raises:
        UserError: another mode, or a size below 1.
    """

    def __init__(self, size: int, mode: ViewMode = "square", background: tuple[int, int, int] = CLIP_GRAY) -> None:
        if mode not in NUM_VIEWS:
            raise UserError(f"views={mode!r}; allowed: {', '.join(NUM_VIEWS)}")
        if size < 1:
            raise UserError(f"size={size} pixels of a view; it must be at least 1")
        self.size, self.mode, self.background = size, mode, background

    @classmethod
    def from_image_processor(cls, processor: ImageProcessor, mode: ViewMode = "square") -> PixelTransform:
        """What gives the pixels of `processor`, before their normalising, with its mean colour as background.

        Raises:
            UserError: the processor does something else than CLIP's resizing and cropping to one square size.
        """
        facts = processor.to_dict()
        size = facts.get("size")
        edge = size.get("shortest_edge") if isinstance(size, Mapping) else None
        if not isinstance(edge, int) or size != {"shortest_edge": edge}:
            raise UserError(f"image processor: size={size}; only a shortest_edge can be mirrored")
        needed = {
            "do_resize": True, "do_center_crop": True, "do_rescale": True, "do_normalize": True, "resample": _BICUBIC,
            "crop_size": {"height": edge, "width": edge}, "rescale_factor": 1 / 255,
        }  # fmt: skip
        for name, value in needed.items():
            if facts.get(name) != value:
                raise UserError(f"image processor: {name}={facts.get(name)}; only {value} can be mirrored")
        red, green, blue = (int(255 * value) for value in facts["image_mean"])
        return cls(edge, mode, (red, green, blue))

    @property
    def num_views(self) -> int:
        """V."""
        return NUM_VIEWS[self.mode]

    def __call__(self, pictures: Sequence[bytes]) -> Tensor:
        """uint8 [F, V, 3, S, S] of F encoded pictures.

        Raises:
            SampleError: one of them cannot be decoded, or is too elongated to be resized in bounded memory.
        """
        views = torch.empty(len(pictures), self.num_views, 3, self.size, self.size, dtype=torch.uint8)
        for frame, raw in zip(views, pictures, strict=True):
            pixels = decode_image(raw)
            if self.mode == "square":
                frame[0] = self._cropped(pixels)
                continue
            square = self._squared(pixels, even=self.mode == "hd")
            if self.mode == "hd":
                frame[:-1] = _resized(_quarters(square), self.size, self.size)
            frame[-1] = _resized(square[None], self.size, self.size)[0]
        return views

    def _cropped(self, pixels: NDArray[np.uint8]) -> Tensor:
        """[3, S, S], the middle of the picture whose shorter side is S."""
        height, width = pixels.shape[:2]
        short, long = min(height, width), max(height, width)
        longer = int(self.size * long / short)  # rounded as CLIP's processor does
        if self.size * longer > MAX_PIXELS:
            raise SampleError(f"image of {width}x{height} pixels is too elongated to be resized to {self.size} pixels")
        rows, columns = (self.size, longer) if height <= width else (longer, self.size)
        top, left = (rows - self.size) // 2, (columns - self.size) // 2
        return _resized(pixels[None], rows, columns)[0, :, top : top + self.size, left : left + self.size]

    def _squared(self, pixels: NDArray[np.uint8], *, even: bool) -> NDArray[np.uint8]:
        """The picture in the middle of a square of the background's colour; itself if it is one."""
        height, width = pixels.shape[:2]
        side = max(height, width)
        side += side % 2 if even else 0
        if side * side > MAX_PIXELS:
            raise SampleError(f"image of {width}x{height} pixels is too large to be padded to a square")
        if height == width == side:
            return pixels
        row = np.tile(np.array(self.background, np.uint8), side)  # whole rows are copied faster than single pixels
        square = np.tile(row, (side, 1)).reshape(side, side, 3)
        top, left = (side - height) // 2, (side - width) // 2
        square[top : top + height, left : left + width] = pixels
        return square


def normalised(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """float32 [..., 3, H, W] of bytes [..., 3, H, W]: (pixels / 255 - mean) / std for each colour, on their device.

    Raises:
        ValueError: the pixels are no bytes, and so may be normalised already.
    """
    if pixels.dtype != torch.uint8:
        raise ValueError(f"pixels are {pixels.dtype}, not torch.uint8")
    mean_C11, std_C11 = (255 * torch.tensor(values, device=pixels.device)[:, None, None] for values in (mean, std))
    return pixels.to(torch.float32).sub_(mean_C11).div_(std_C11)


def _resized(pictures: NDArray[np.uint8], rows: int, columns: int) -> Tensor:
    """Pictures [N, H, W, 3] as [N, 3, rows, columns].

    Torch resizes every row first, as Pillow does too, but since version 13 not where the height shrinks by more than
    twice as many pixels as the width. The order matters at hard edges, since bytes are clipped in between.
    """
    pictures_N3HW = torch.from_numpy(pictures).permute(0, 3, 1, 2)  # channels last in memory, which is fastest
    height, width = pictures_N3HW.shape[-2:]
    if (height, width) == (rows, columns):
        return pictures_N3HW  # stored at the right size; resizing would cost a fifth of the decoding
    if height - rows > max(0, 2 * (width - columns)):
        pictures_N3HW = interpolate(pictures_N3HW, size=(rows, width), mode="bicubic", antialias=True)
    return interpolate(pictures_N3HW, size=(rows, columns), mode="bicubic", antialias=True)


def _quarters(square: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[4, H / 2, W / 2, 3] row by row of a square with an even side."""
    half = len(square) // 2
    return square.reshape(2, half, 2, half, 3).swapaxes(1, 2).reshape(4, half, half, 3)
