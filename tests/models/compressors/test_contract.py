"""What every compressor owes, found by its yaml in conf/compressor: a new one is tested without an edit here.

The name of a compressor is the name of its yaml, which holds the class and its own keyword arguments.
"""

import re
from collections.abc import Callable
from math import isqrt
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.refusals import refuses

from llava_mini.errors import UserError
from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.models.compressors import Compressor, build_compressor

FOLDER = Path(__file__).parents[3] / "conf" / "compressor"
SPECS: dict[str, dict[str, Any]] = {
    path.stem: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yaml"))
}
DIM = 32
GRIDS = [(4, 4), (3, 5)]  # a view, and a grid with sides that differ
SIDES = [2, 7]  # 7 does not divide the grids and is larger than they are
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
    assert "dim" not in SPECS[name]  # the width comes from the neighbors


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


Compress = Callable[[torch.Tensor, int, int], torch.Tensor]


def transposed(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """A grid [F, height * width, D] with rows and columns exchanged."""
    return tokens.unflatten(1, (height, width)).transpose(1, 2).flatten(1, 2)


def token_grid(compressor: Compressor, height: int, width: int) -> tuple[int, int] | None:
    """Rows and columns of the tokens: as many as the patches' or a square of a fixed number; None for anything else."""
    count = compressor.num_tokens(height, width)
    if count == height * width:
        return height, width
    side = isqrt(count)
    return (side, side) if side > 0 and side**2 == count == compressor.num_tokens(8, 8) else None


def transposes(compressor: Compressor, compress: Compress, height: int, width: int) -> bool:
    """Whether transposed patches give transposed tokens."""
    grid = token_grid(compressor, height, width)
    assert grid is not None
    patches = patches_of(height, width)
    turned = compress(transposed(patches, height, width), width, height)
    return torch.allclose(turned, transposed(compress(patches, height, width), *grid), atol=1e-5)


def stretching_errors(compress: Compress) -> tuple[float, float]:
    """How far tokens move when every column is doubled: told so, and with height and width exchanged."""
    patches = patches_of(4, 4)
    wide = patches.unflatten(1, (4, 4)).repeat_interleave(2, dim=2).flatten(1, 2)
    tokens = compress(patches, 4, 4)
    right, wrong = (float((compress(wide, *grid) - tokens).norm() / tokens.norm()) for grid in ((4, 8), (8, 4)))
    return right, wrong


def exchanged(compressor: Compressor) -> Compress:
    """The mistake that the next test is for: height read as width."""
    return lambda patches, height, width: compressor(patches, width, height)


@EVERY_C
@torch.no_grad()
def test_transposed_patches_give_transposed_tokens(spec: dict[str, Any]) -> None:
    compressor = build_compressor(spec, DIM).eval()
    if token_grid(compressor, 3, 5) is None:
        pytest.skip("its tokens are no grid")
    if not transposes(compressor, compressor, 4, 4):
        pytest.skip("it tells rows from columns on a square grid too")
    assert transposes(compressor, compressor, 3, 5)
    one = patches_of(3, 5)
    if not torch.allclose(compressor(one, 3, 5), compressor(one, 5, 3), atol=1e-5):  # the grid's shape matters to it
        assert not transposes(compressor, exchanged(compressor), 3, 5)


@EVERY_C
@torch.no_grad()
def test_height_comes_before_width(spec: dict[str, Any]) -> None:
    """Doubled columns are nearly the same picture, as long as they are read as columns."""
    compressor = build_compressor(spec, DIM).eval()
    if compressor.num_tokens(4, 4) != compressor.num_tokens(4, 8) or compressor.num_tokens(4, 4) == 0:
        pytest.skip("its tokens cannot be compared between grids")
    right, wrong = stretching_errors(compressor)
    if abs(right - wrong) < 1e-5:
        pytest.skip("the grid's shape does not matter to it")
    assert right < wrong / 2


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
@pytest.mark.parametrize("C", [0, 1.5, "2", True, None])
def test_impossible_side(name: str, C: Any) -> None:
    with refuses("compressor.C" if "C" in SPECS[name] else "compressor"):
        build_compressor({**SPECS[name], "C": C}, DIM)


@NAMES
def test_impossible_width(name: str) -> None:
    with refuses("dim", 0):
        build_compressor(SPECS[name], 0)


@NAMES
def test_unknown_argument(name: str) -> None:
    with refuses("compressor"):
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
    with pytest.raises(UserError, match=re.escape(target or "null")) as caught:
        build_compressor({"_target_": target}, DIM)
    assert caught.value.key in ("compressor._target_", "compressor")
