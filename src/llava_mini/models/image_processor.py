"""Image processor that a vision tower was trained with, chosen by the tower's model_type.

CLIP's images are resized by their shorter edge, cut to the middle square, and normalized with the mean and deviation of
CLIP's own data. SigLIP's are resized to a square whatever their shape, and their values are from -1 to 1. Both resize
bicubically.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import CLIPImageProcessorPil, PreTrainedConfig, SiglipImageProcessorPil

from llava_mini.errors import UserError

SIGLIP = "siglip_vision_model"


def build_image_processor(vision_config: PreTrainedConfig, given: Mapping[str, Any] | None = None) -> Any:
    """Return the vision tower's image processor, which is one of transformers and needs no torchvision.

    `given` are fields that replace the defaults (`model.image_processor`).

    Raises:
        UserError: if `given` cuts images, for a vision tower whose images are not cut.
    """
    side, fields = vision_config.image_size, dict(given or {})
    square = {"height": side, "width": side}
    if vision_config.model_type != SIGLIP:
        return CLIPImageProcessorPil(**{"size": {"shortest_edge": side}, "crop_size": square, **fields})
    size = fields.get("size", square)
    if "crop_size" in fields or set(size) != set(square):
        raise UserError(
            f"model.image_processor={fields}: SigLIP's images are resized to a square; allowed are {{}} and a size "
            "with height and width"
        )
    return SiglipImageProcessorPil(**{"size": square, **fields})
