"""The image processor that a vision tower was trained with, which its model_type tells.

CLIP's pictures are resized by their shorter edge and cut to the middle square, with mean and deviation of its own data;
SigLIP's are resized to the square whatever their shape, and their values go from -1 to 1. Both resize bicubically.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import CLIPImageProcessorPil, PreTrainedConfig, SiglipImageProcessorPil

from llava_mini.errors import UserError

SIGLIP = "siglip_vision_model"


def build_image_processor(vision_config: PreTrainedConfig, given: Mapping[str, Any] | None = None) -> Any:
    """The tower's image processor; an image processor of transformers that needs no torchvision.

    Args:
        vision_config: The tower's, of which kind and `image_size` are read.
        given: What is said of the image processor otherwise (`model.image_processor`).

    Raises:
        UserError: `given` cuts pictures, for a tower whose pictures are not cut.
    """
    side, fields = vision_config.image_size, dict(given or {})
    square = {"height": side, "width": side}
    if vision_config.model_type != SIGLIP:
        return CLIPImageProcessorPil(**{"size": {"shortest_edge": side}, "crop_size": square, **fields})
    size = fields.get("size", square)
    if "crop_size" in fields or set(size) != set(square):
        raise UserError(
            f"model.image_processor={fields}: SigLIP's pictures are resized to a square; allowed are {{}} and a size "
            "with height and width"
        )
    return SiglipImageProcessorPil(**{"size": square, **fields})
