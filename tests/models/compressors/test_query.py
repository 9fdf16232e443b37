"""Query compression: its positions, its attention written out by hand, and what a fresh one computes."""

import pytest
import torch
from tests.refusals import refuses
from torch.nn import functional

from llava_mini.errors import UserError
from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.models.compressors.query import QueryCompressor, sincos_2d

ATOL = 1e-5  # float32, sums over 16 patches and 32 channels in another order


def patches_of(side: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, side * side, 32, generator=torch.Generator().manual_seed(seed))


def shuffled(patches: torch.Tensor) -> torch.Tensor:
    return patches[:, torch.randperm(patches.shape[1], generator=torch.Generator().manual_seed(3))]


@torch.no_grad()
def test_one_query_does_not_care_where_patches_lie() -> None:
    """With C=1 all keys have the same position."""
    compressor = QueryCompressor(dim=32, C=1).eval()
    patches = patches_of(4)
    torch.testing.assert_close(compressor(shuffled(patches), 4, 4), compressor(patches, 4, 4), atol=ATOL, rtol=0)


@torch.no_grad()
def test_several_queries_do() -> None:
    compressor = QueryCompressor(dim=32, C=2).eval()
    patches = patches_of(4)
    assert (compressor(shuffled(patches), 4, 4) - compressor(patches, 4, 4)).abs().max() > 0.01


@torch.no_grad()
def test_attention_by_hand() -> None:
    """LayerNorm on both sides; positions on queries and keys, not on values; eight heads."""
    torch.manual_seed(0)
    compressor = QueryCompressor(dim=32, C=2, num_heads=8).eval()
    for parameter in compressor.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    patches = patches_of(2)  # a grid of the queries' own size: positions need no interpolation
    normed = compressor.norm_patches(patches)
    weights = compressor.attention.in_proj_weight.chunk(3)
    biases = compressor.attention.in_proj_bias.chunk(3)
    position = sincos_2d(32, 2)
    query = functional.linear(compressor.norm_query(compressor.query) + position, weights[0], biases[0])
    keys = functional.linear(normed + position, weights[1], biases[1])
    values = functional.linear(normed, weights[2], biases[2])
    heads = [tensor.unflatten(-1, (8, 4)).transpose(-3, -2) for tensor in (query, keys, values)]
    attention = (heads[0] @ heads[1].transpose(-1, -2) / 2).softmax(-1)  # sqrt(4 channels of a head) = 2
    mixed = (attention @ heads[2]).transpose(-3, -2).flatten(-2)
    torch.testing.assert_close(compressor(patches, 2, 2), compressor.attention.out_proj(mixed), atol=ATOL, rtol=0)


@torch.no_grad()
def test_a_fresh_query_pools_the_patches_near_it() -> None:
    """Projections start as the identity, so a token is a convex mixture of normalized patches, nearest ones first."""
    compressor = QueryCompressor(dim=32, C=2).eval()
    normed = compressor.norm_patches(patches_of(4))
    tokens = compressor(patches_of(4), 4, 4)
    assert (tokens <= normed.amax(1, keepdim=True) + ATOL).all()
    assert (tokens >= normed.amin(1, keepdim=True) - ATOL).all()
    similarity = sincos_2d(32, 2) @ compressor._patch_positions(4, 4).T
    assert similarity.argmax(1).tolist() == [0, 3, 12, 15]  # the four corners of a row-major 4 x 4 grid


def test_a_models_initialization_keeps_the_fresh_compressor(make_config) -> None:
    """Transformers initializes linear layers and norms in its own way, which must not reach into the compressor."""
    compressor = LlavaMiniForConditionalGeneration(make_config()).compressor
    assert torch.equal(compressor.attention.in_proj_weight, torch.eye(32).repeat(3, 1))
    assert torch.equal(compressor.attention.out_proj.weight, torch.eye(32))
    assert torch.equal(compressor.position, sincos_2d(32, 2))
    assert 0.01 < compressor.query.std() < 0.03


def test_positions_turn_with_x_first_and_y_second() -> None:
    position = sincos_2d(8, 3).reshape(3, 3, 8)
    assert torch.equal(position[0, :, :4], position[2, :, :4])  # the first half depends on the column only
    assert torch.equal(position[:, 0, 4:], position[:, 2, 4:])  # the second on the row only
    expected = torch.tensor([2.0, 0.02]).sin().tolist() + torch.tensor([2.0, 0.02]).cos().tolist()
    torch.testing.assert_close(position[0, 2, :4], torch.tensor(expected))  # frequencies 1 and 1/100
    torch.testing.assert_close(position[2, 0, 4:], torch.tensor(expected))


@torch.no_grad()
def test_keys_on_the_queries_own_grid_have_the_queries_positions() -> None:
    compressor = QueryCompressor(dim=32, C=4)
    torch.testing.assert_close(compressor._patch_positions(4, 4), sincos_2d(32, 4), atol=1e-6, rtol=0)


@pytest.mark.parametrize("num_heads", [0, -8, 3, 2.0])
def test_impossible_number_of_heads(num_heads: float) -> None:
    with refuses("compressor.num_heads", num_heads):
        QueryCompressor(dim=32, C=1, num_heads=num_heads)


def test_width_that_two_axes_of_sines_and_cosines_cannot_share() -> None:
    with pytest.raises(UserError, match="30.*multiple.*4"):
        QueryCompressor(dim=30, C=1, num_heads=2)
