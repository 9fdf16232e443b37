"""What every compressor owes, found by its yaml in conf/compressor: a new one is tested without an edit here.

The name of a compressor is the name of its yaml, which holds the class and its own keyword arguments.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from llava_mini.errors import UserError
from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.models.compressors import Compressor, build_compressor

FOLDER = Path(__file__).parents[3] / "conf" / "compressor"
SPECS: dict[str, dict[str, Any]] = {
    path.stem: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yaml"))
}
DIM = 32
GRIDS = [(4, 4), (8, 8), (3, 5)]  # a view, an HD grid of twice the side, and one with sides that differ
SIDES = [1, 2, 3, 7, 20]  # 3 and 7 do not divide the grids; 20 is larger than any of them
CASES = [
    pytest.param({**spec, "C": side} if "C" in spec else spec, id=f"{name}-C{side}" if "C" in spec else name)
    for name, spec in SPECS.items()
    for side in (SIDES if "C" in spec else [0])
]
NAMES = pytest.mark.parametrize("name", SPECS)
EVERY_C = pytest.mark.parametrize("spec", CASES)


def patches_of(height: int, width: int, frames: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(frames, height * width, DIM, generator=torch.Generator().manual_seed(seed))


def test_the_compressors_of_this_package_are_found() -> None:
    assert {"query", "avg_pool", "none", "zero", "uniform"} <= set(SPECS)


@NAMES
def test_yaml_holds_the_class_and_its_own_arguments(name: str) -> None:
    compressor = build_compressor(SPECS[name], DIM)
    assert isinstance(compressor, Compressor)
    assert not any(key.startswith("_") for key in SPECS[name] if key != "_target_")
    assert "dim" not in SPECS[name]  # the width comes from the neighbours


@EVERY_C
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid[0]}x{grid[1]}")
def test_makes_as_many_tokens_as_it_says(spec: dict[str, Any], grid: tuple[int, int]) -> None:
    compressor = build_compressor(spec, DIM)
    tokens = compressor(patches_of(*grid), *grid)
    assert tokens.shape == (3, compressor.num_tokens(*grid), DIM)
    assert torch.isfinite(tokens).all()
    if "C" in spec:
        assert compressor.num_tokens(*grid) == spec["C"] ** 2


@EVERY_C
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid[0]}x{grid[1]}")
def test_gradients_reach_patches_and_parameters(spec: dict[str, Any], grid: tuple[int, int]) -> None:
    compressor = build_compressor(spec, DIM)
    patches = patches_of(*grid).requires_grad_()
    tokens = compressor(patches, *grid)
    (tokens * torch.randn(tokens.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    assert patches.grad is not None and torch.isfinite(patches.grad).all()
    assert bool(patches.grad.abs().amax(dim=(1, 2)).gt(0).all()) == (tokens.shape[1] > 0)  # every frame counts
    for parameter_name, parameter in compressor.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, parameter_name


@EVERY_C
def test_frames_do_not_mix(spec: dict[str, Any]) -> None:
    compressor = build_compressor(spec, DIM).eval()
    patches, order = patches_of(4, 4), torch.tensor([2, 0, 1])
    together = compressor(patches, 4, 4)
    torch.testing.assert_close(compressor(patches[order], 4, 4), together[order])
    torch.testing.assert_close(compressor(patches[:1], 4, 4), together[:1])


@NAMES
def test_no_frame_at_all(name: str) -> None:
    compressor = build_compressor(SPECS[name], DIM)
    tokens = compressor(patches_of(4, 4, frames=0), 4, 4)
    assert tokens.shape == (0, compressor.num_tokens(4, 4), DIM)


@EVERY_C
def test_bfloat16(spec: dict[str, Any]) -> None:
    compressor = build_compressor(spec, DIM).eval()
    exact = compressor(patches_of(4, 4), 4, 4)
    half = compressor.to(torch.bfloat16)(patches_of(4, 4).bfloat16(), 4, 4)
    assert half.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits: values of about one carry errors of 2**-9 each, and the attention adds a few
    torch.testing.assert_close(half.float(), exact, atol=0.06, rtol=0.06)


@NAMES
def test_save_and_load_through_a_model(name: str, make_model, make_sample, collate, tmp_path) -> None:
    spec = {**SPECS[name], "C": 3} if "C" in SPECS[name] else SPECS[name]
    model = make_model(compressor=spec)
    model.save_pretrained(tmp_path)
    again = LlavaMiniForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert again.config.compressor == spec
    own, loaded = model.compressor.state_dict(), again.compressor.state_dict()
    assert own.keys() == loaded.keys() and all(torch.equal(own[key], loaded[key]) for key in own)
    batch = collate(model, [make_sample(1), make_sample(2, views=5)])
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)


@NAMES
@pytest.mark.parametrize("C", [0, -1, 1.5, "2", True, None])
def test_impossible_side(name: str, C: Any) -> None:
    with pytest.raises(UserError, match="C"):
        build_compressor({**SPECS[name], "C": C}, DIM)


@NAMES
def test_impossible_width(name: str) -> None:
    with pytest.raises(UserError, match="0"):
        build_compressor(SPECS[name], 0)


@NAMES
def test_unknown_argument(name: str) -> None:
    with pytest.raises(UserError, match="sharpness"):
        build_compressor({**SPECS[name], "sharpness": 2}, DIM)


@pytest.mark.parametrize(
    "target",
    [
        None,
        "QueryCompressor",
        "llava_mini.models.compressors.qwery.QueryCompressor",
        "llava_mini.models.compressors.query.Qwery",
        "llava_mini.models.compressors.query.sincos_2d",
        "llava_mini.models.compressors.base.Compressor",
        "torch.nn.Identity",
        "os.system",
        "llava_mini.models.compressors.base.importlib.import_module",
        "nowhere.Compressor",
    ],
)
def test_target_that_is_no_compressor(target: str | None) -> None:
    with pytest.raises(UserError, match=f"compressor {target}"):
        build_compressor({"_target_": target}, DIM)
