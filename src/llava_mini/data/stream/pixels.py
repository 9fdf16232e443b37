"""Converts encoded images to the vision tower's pixels as bytes, and bytes to normalized floats on any device.

Resizing is torch's bicubic on bytes, at a quarter of the cost of Pillow's. Its weights are rounded to 16 bits: about
one value in 150 differs from Pillow's by 1/255, very few by 2/255 and none by more (tested). Bytes take a quarter of
the memory of floats when they are stored, copied between processes and sent to a device, where `normalized` converts
them to floats.

Shapes: F images, V views of each, S x S pixels of a view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from llava_mini.errors import SampleError, UserError, refused
from llava_mini.media.images import WHITE, decode_image
from llava_mini.views import NUM_VIEWS, Color, ViewMode, check_mode, mean_color, resized_longer, views_of

CLIP_GRAY = (122, 116, 104)  # CLIP's mean color, with which LLaVA pads
_BICUBIC = 3  # PIL.Image.Resampling.BICUBIC


class ImageProcessor(Protocol):
    """An image processor of transformers."""

    def to_dict(self) -> dict[str, Any]: ...


class PixelTransform:
    """Converts encoded images to bytes [F, V, 3, S, S]: their views (`llava_mini.views`), resized for the vision tower.

    For CLIP, views are cropped to their center square. For SigLIP, they are resized to a square without cropping. For
    example 640x480 at S = 336: `square` resizes to 448x336 and keeps columns 56-391; `pad` resizes a square of 640x640;
    `hd` resizes its four quarters of 320x320 and the whole.

    `around` is the color around images that are not square, `background` that behind transparent parts. With `cut`, a
    view keeps its aspect ratio and is cropped; else it is resized to S x S whatever its shape.

    Raises:
        UserError: The mode is unknown, or the size is below 1.
    """

    def __init__(
        self,
        size: int,
        mode: ViewMode = "square",
        around: Color = CLIP_GRAY,
        *,
        background: Color = WHITE,
        cut: bool = True,
    ) -> None:
        check_mode(mode)
        if size < 1:
            raise refused("size", size, "pixels of a view", allowed="1 and above")
        self.size, self.mode, self.cut = size, mode, cut
        self.around, self.background = around, background

    @classmethod
    def from_image_processor(
        cls, processor: ImageProcessor, mode: ViewMode = "square", background: Color = WHITE
    ) -> PixelTransform:
        """Return the transform to the pixels of `processor` before normalization, with its mean color around images.

        Raises:
            UserError: The processor does something other than CLIP's resizing and cropping to one square size, or
                SigLIP's resizing to one.
        """
        facts = processor.to_dict()
        size = facts.get("size")
        sides = dict(size) if isinstance(size, Mapping) else {}
        edge = sides.get("shortest_edge", sides.get("height"))
        square = {"height": edge, "width": edge}
        if not isinstance(edge, int) or sides not in ({"shortest_edge": edge}, square):
            why = f"image processor: size={size}; only a shortest_edge or a square can be mirrored"
            raise UserError(why, key="size", value=size, allowed="a shortest_edge or a square")
        cut = sides != square
        needed = {
            "do_resize": True, "do_center_crop": cut, "do_rescale": True, "do_normalize": True, "resample": _BICUBIC,
            "crop_size": square if cut else None, "rescale_factor": 1 / 255,
        }  # fmt: skip
        for name, value in needed.items():
            if (facts.get(name) or False) != (value or False):  # SigLIP's does not say that it does not crop
                why = f"image processor: {name}={facts.get(name)}; only {value} can be mirrored"
                raise UserError(why, key=name, value=facts.get(name), allowed=str(value))
        return cls(edge, mode, mean_color(facts["image_mean"]), background=background, cut=cut)

    @property
    def num_views(self) -> int:
        """Number V of views of an image."""
        return NUM_VIEWS[self.mode]

    def views_of_frame(self, is_video: bool) -> int:
        """Return the number V of views of an image or of a video's frame."""
        return 1 if is_video else self.num_views

    def __call__(self, images: Sequence[bytes], is_video: bool = False) -> Tensor:
        """Return the pixels uint8 [F, V, 3, S, S] of F encoded images; V is 1 when they are the frames of a video.

        Raises:
            SampleError: An image cannot be decoded, or is too elongated to be resized in bounded memory.
        """
        frames = torch.empty(len(images), self.views_of_frame(is_video), 3, self.size, self.size, dtype=torch.uint8)
        for frame, raw in zip(frames, images, strict=True):
            try:
                views = views_of(decode_image(raw, self.background), self.mode, self.around, is_video=is_video)
                for place, view in enumerate(views):
                    frame[place] = self._cropped(view) if self.cut else _resized(view, self.size, self.size)
            except UserError as error:
                raise SampleError(str(error)) from None
        return frames

    def _cropped(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Return [3, S, S], the center of the image after its shorter side is resized to S."""
        height, width = pixels.shape[:2]
        longer = resized_longer(width, height, self.size)
        rows, columns = (self.size, longer) if height <= width else (longer, self.size)
        top, left = (rows - self.size) // 2, (columns - self.size) // 2
        return _resized(pixels, rows, columns)[:, top : top + self.size, left : left + self.size]


def normalized(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Convert bytes [..., 3, H, W] to float32: (pixels / 255 - mean) / std for each color, on the pixels' device.

    Raises:
        ValueError: The pixels are not bytes, and so may already be normalized.
    """
    if pixels.dtype != torch.uint8:
        raise ValueError(f"pixels are {pixels.dtype}, not torch.uint8")
    mean_C11, std_C11 = (255 * torch.tensor(values, device=pixels.device)[:, None, None] for values in (mean, std))
    return pixels.to(torch.float32).sub_(mean_C11).div_(std_C11)


def _resized(image: NDArray[np.uint8], rows: int, columns: int) -> Tensor:
    """Resize an image [H, W, 3] to [3, rows, columns].

    Torch resizes every row first. So does Pillow, but since its version 13 not where the height shrinks by more than
    twice as many pixels as the width. The order matters at hard edges, since bytes are clipped in between.
    """
    height, width = image.shape[:2]
    image_13HW = torch.from_numpy(image)[None].permute(0, 3, 1, 2)  # channels last in memory, which is fastest
    if (height, width) == (rows, columns):
        return image_13HW[0]  # already the right size; resizing would cost a fifth of the decoding
    if height - rows > max(0, 2 * (width - columns)):
        image_13HW = interpolate(image_13HW, size=(rows, width), mode="bicubic", antialias=True)
    return interpolate(image_13HW, size=(rows, columns), mode="bicubic", antialias=True)[0]
