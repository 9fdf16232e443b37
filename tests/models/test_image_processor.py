"""A tower's pictures are made as its own kind's are, whatever made the processor."""

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, SiglipImageProcessorPil, SiglipVisionConfig

from llava_mini.errors import UserError
from llava_mini.models.image_processor import build_image_processor

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8))


def test_clip_is_cut_and_siglip_is_not() -> None:
    square = {"height": 28, "width": 28}
    clip = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=square)
    for kind, theirs in ((CLIPVisionConfig, clip), (SiglipVisionConfig, SiglipImageProcessorPil(size=square))):
        ours = build_image_processor(kind(image_size=28, patch_size=14))
        assert ours.to_dict() == theirs.to_dict()
        assert np.array_equal(ours(PICTURE)["pixel_values"], theirs(PICTURE)["pixel_values"])


def test_what_a_config_says_is_taken_over() -> None:
    ours = build_image_processor(CLIPVisionConfig(image_size=28), {"image_mean": [0.25] * 3})
    assert list(ours.image_mean) == [0.25] * 3 and dict(ours.crop_size) == {"height": 28, "width": 28}
    assert dict(build_image_processor(SiglipVisionConfig(), {"size": {"height": 9, "width": 9}}).size)["height"] == 9


@pytest.mark.parametrize("given", [{"size": {"shortest_edge": 28}}, {"crop_size": {"height": 28, "width": 28}}])
def test_siglip_with_clips_keys_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(UserError, match="SigLIP's images are resized to a square; allowed are {} and a size"):
        build_image_processor(SiglipVisionConfig(image_size=28), given)
