"""The vision tower's layer and patches, and the layout of crops: every patch must land where it lies in the image."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

from llava_mini.models.vision_tower import (
    build_vision_tower,
    compression_grid,
    encode_views,
    merge_crops,
    patches_per_side,
    prefusion_patches,
    readable,
)

FIELDS = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=24, patch_size=6
)


@pytest.mark.parametrize("family", ["clip_vision_model", "siglip_vision_model", "dinov2"])
@pytest.mark.parametrize("layer", [-2, -1, 0, 1])
def test_features_are_the_patches_of_one_layer(family: str, layer: int) -> None:
    config = AutoConfig.for_model(family, **FIELDS)
    assert patches_per_side(config) == 4
    tower = build_vision_tower(config).eval()
    pixels = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        features = encode_views(tower, pixels, layer, 16)
        states = tower(pixel_values=pixels, output_hidden_states=True).hidden_states
    class_tokens = 0 if family == "siglip_vision_model" else 1
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


def run_layers(tower: PreTrainedModel, path: str) -> list[int]:
    """The numbers of the tower's layers, added as they run."""
    run: list[int] = []
    for number in range(3):
        layer = tower.get_submodule(f"{path}.{number}")
        layer.register_forward_pre_hook(lambda *_, number=number: run.append(number))
    return run


@pytest.mark.parametrize(("layer", "expected"), [(0, []), (1, [0]), (-2, [0, 1]), (-1, [0, 1, 2])])
def test_no_layer_runs_after_the_one_that_is_read(layer: int, expected: list[int]) -> None:
    tower = build_vision_tower(AutoConfig.for_model("clip_vision_model", **FIELDS)).eval()
    run = run_layers(tower, "encoder.layers")
    stopped = encode_views(tower, torch.ones(1, 3, 24, 24), layer, 16)
    assert run == expected
    run.clear()
    assert torch.equal(encode_views(tower, torch.ones(1, 3, 24, 24), layer, 16, stop=False), stopped)
    assert run == [0, 1, 2]


@torch.no_grad()
@pytest.mark.parametrize("family", ["clip_vision_model", "siglip_vision_model", "dinov2"])
def test_a_tower_called_by_itself_is_that_of_transformers(family: str) -> None:
    """Also after it was read, and after reading it failed: outputs and names of weights, as files have them."""
    config = AutoConfig.for_model(family, **FIELDS)
    plain, pixels = AutoModel.from_config(config).eval(), torch.randn(2, 3, 24, 24)
    tower = build_vision_tower(config).eval()
    tower.load_state_dict(plain.state_dict())
    encode_views(tower, pixels, 1, 16)
    handle = tower.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        encode_views(tower, pixels, 1, 16)
    handle.remove()
    assert list(tower.state_dict()) == list(plain.state_dict())
    assert torch.equal(tower(pixel_values=pixels).pooler_output, plain(pixel_values=pixels).pooler_output)


@torch.no_grad()
def test_a_compiled_tower_is_read_and_called_by_itself() -> None:
    """The compiler traces one of the two; what it keeps must not be taken for the other."""
    tower = build_vision_tower(AutoConfig.for_model("clip_vision_model", **FIELDS)).eval()
    pixels = torch.randn(1, 3, 24, 24)
    expected = [encode_views(tower, pixels, -2, 16), tower(pixel_values=pixels).pooler_output]
    tower.compile(backend="eager")
    for _ in range(2):
        assert torch.equal(encode_views(tower, pixels, -2, 16), expected[0])
        assert torch.equal(tower(pixel_values=pixels).pooler_output, expected[1])


def test_towers_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(ValueError, match="^SwinModel: no single list of its 2 layers"):
        build_vision_tower(AutoConfig.for_model("swin", image_size=24, patch_size=6, depths=[1, 1], num_heads=[1, 1]))
    raw = AutoModel.from_config(AutoConfig.for_model("clip_vision_model", **FIELDS))
    with pytest.raises(ValueError, match="^CLIPVisionModel: .*`readable`"):
        encode_views(raw, torch.zeros(1, 3, 24, 24), -2, 16)
    assert encode_views(readable(raw), torch.zeros(1, 3, 24, 24), -2, 16).shape == (1, 16, 32)


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


@torch.no_grad()
def test_threads_may_share_a_tower_that_they_read_at_different_layers() -> None:
    tower = build_vision_tower(AutoConfig.for_model("clip_vision_model", **FIELDS)).eval()
    pixels = torch.randn(8, 1, 3, 24, 24)
    calls = [(number % 8, number % 3 - 2, number % 5 > 0) for number in range(120)]  # image, layer, whether it stops
    states = [tower(pixel_values=each, output_hidden_states=True).hidden_states for each in pixels]

    @torch.no_grad()
    def encoded(call: tuple[int, int, bool]) -> torch.Tensor:
        image, layer, stop = call
        return encode_views(tower, pixels[image], layer, 16, stop=stop)

    with ThreadPoolExecutor(4) as threads:
        for (image, layer, _), features in zip(calls, threads.map(encoded, calls), strict=True):
            assert torch.equal(features, states[image][layer][:, 1:])


def test_threads_may_share_a_tower_that_waits_in_host_memory() -> None:
    """Each call puts copies on its device in the weights' place; the last one to end must not leave them there."""
    tower = build_vision_tower(AutoConfig.for_model("clip_vision_model", **FIELDS)).eval().requires_grad_(False)
    for module in tower.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to("meta"))
    before = {name: weight.data_ptr() for name, weight in tower.named_parameters()}

    def encoded(_: int) -> str:
        return encode_views(tower, torch.zeros(1, 3, 24, 24, device="meta"), -2, 16, offload=True).device.type

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(encoded, range(80))) == {"meta"}
    assert {name: weight.data_ptr() for name, weight in tower.named_parameters()} == before
