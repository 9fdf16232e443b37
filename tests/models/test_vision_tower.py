"""The vision tower's layer and patches, and the layout of crops: every patch must land where it lies in the image."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AutoConfig

from llava_mini.models.vision_tower import (
    build_vision_tower,
    compression_grid,
    encode_views,
    merge_crops,
    patches_per_side,
    prefusion_patches,
)

FIELDS = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=24, patch_size=6
)


@pytest.mark.parametrize("family", ["clip_vision_model", "siglip_vision_model"])
@pytest.mark.parametrize("layer", [-2, -1, 1])
def test_features_are_the_patches_of_one_layer(family: str, layer: int) -> None:
    config = AutoConfig.for_model(family, **FIELDS)
    assert patches_per_side(config) == 4
    tower = build_vision_tower(config).eval()
    pixels = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        features = encode_views(tower, pixels, layer, 16)
        states = tower(pixel_values=pixels, output_hidden_states=True).hidden_states
    class_tokens = 1 if family == "clip_vision_model" else 0
    assert torch.equal(features, states[layer][:, class_tokens:])


@pytest.mark.parametrize("family", ["clip_vision_model", "siglip_vision_model"])
def test_patches_are_row_major(family: str) -> None:
    """A change of one patch's pixels moves that patch's embedding (hidden state 0) and no other."""
    tower = build_vision_tower(AutoConfig.for_model(family, **FIELDS)).eval()
    pixels = torch.zeros(1, 3, 24, 24)
    changed = pixels.clone()
    changed[:, :, 6:12, 18:24] = 1  # row 1, column 3
    with torch.no_grad():
        difference = encode_views(tower, changed, 0, 16) - encode_views(tower, pixels, 0, 16)
    assert difference.abs().amax(dim=(0, 2)).nonzero().flatten().tolist() == [1 * 4 + 3]


def test_weights_have_the_dtype_in_force_whatever_the_config_remembers() -> None:
    assert (
        build_vision_tower(AutoConfig.for_model("clip_vision_model", dtype="bfloat16", **FIELDS)).dtype == torch.float32
    )


def labelled_views() -> torch.Tensor:
    """[1, 5, 4, 2]: every patch of the crops holds its row and column in the 4 x 4 grid; the whole holds 9."""
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    grid = torch.stack([rows, columns], dim=-1)
    crops = [grid[i : i + 2, j : j + 2].reshape(4, 2) for i in (0, 2) for j in (0, 2)]
    return torch.stack([*crops, torch.full((4, 2), 9)])[None].float()


def test_crops_become_one_row_major_grid() -> None:
    merged = merge_crops(labelled_views())
    assert merged[0].tolist() == [[row, column] for row in range(4) for column in range(4)]


def test_what_compressor_and_prefusion_read() -> None:
    views = labelled_views()
    assert torch.equal(compression_grid(views, 5), merge_crops(views))
    assert torch.equal(prefusion_patches(views, 5), torch.cat([merge_crops(views), views[:, 4]], dim=1))
    assert torch.equal(compression_grid(views, 1), views[:, 0])
    assert torch.equal(prefusion_patches(views[:, :1], 1), views[:, 0])


def test_frames_stay_apart() -> None:
    views = torch.cat([labelled_views(), labelled_views() + 100])
    assert torch.equal(merge_crops(views)[1], merge_crops(views)[0] + 100)


def test_threads_may_share_a_tower() -> None:
    tower = build_vision_tower(AutoConfig.for_model("clip_vision_model", **FIELDS)).eval()
    pixels = torch.randn(8, 1, 3, 24, 24)
    with torch.no_grad():
        expected = [encode_views(tower, each, -2, 16) for each in pixels]

    def encoded(number: int) -> torch.Tensor:
        with torch.no_grad():
            return encode_views(tower, pixels[number % 8], -2, 16)

    with ThreadPoolExecutor(4) as threads:
        for number, features in enumerate(threads.map(encoded, range(80))):
            assert torch.equal(features, expected[number % 8])
