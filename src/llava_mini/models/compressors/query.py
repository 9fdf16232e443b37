"""Query compression (paper section 4.2): C² learnable queries read all patches in one cross-attention.

As in the release, LayerNorm is applied to queries and to patches. 2D sin-cos positions are added to queries and keys,
not to values. The keys' positions are interpolated from the queries' grid to the patches' grid.

Shapes: F frames, P patches, K = C² tokens, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization as init

from llava_mini.errors import refused
from llava_mini.models.compressors.base import Compressor, grid_side


class CrossAttention(nn.MultiheadAttention):
    """torch's multi-head attention, with its last projection called as a module instead of read as a weight.

    So it may be quantized, adapted (LoRA) or offloaded to disk (accelerate) like every other layer.
    """

    def forward(  # type: ignore[override] # torch's other arguments are not used here
        self, query: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, None]:
        """Attend: [F, K, D] and twice [F, P, D] -> [F, K, D]; also return None instead of torch's weights."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        heads = [
            functional.linear(given, weight, bias).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for given, weight, bias in zip((query, key, value), weights, biases, strict=True)
        ]
        mixed = functional.scaled_dot_product_attention(*heads)
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), None


class QueryCompressor(Compressor):
    """Compressor with C² learnable queries and one cross-attention.

    The projections start as the identity. So a new compressor is a soft pooling of normalized patches. The projector,
    aligned to patches in stage 1, can read its output from the first step on.

    Args:
        dim: Width D; a multiple of 4 (two axes of sines and cosines) and of num_heads.
        C: Side of the compression grid.
        num_heads: Number of attention heads (release: 8).
    """

    position: Tensor

    def __init__(self, *, dim: int, C: int, num_heads: int = 8):
        super().__init__()
        self.C = grid_side(C)
        if not isinstance(num_heads, int) or num_heads < 1 or dim % 4 or dim % num_heads:
            raise refused("compressor.num_heads", num_heads, f"the width {dim} must be a multiple of it and of 4")
        self.query = nn.Parameter(torch.empty(C * C, dim))
        self.register_buffer("position", sincos_2d(dim, C))
        self.norm_query = nn.LayerNorm(dim)
        self.norm_patches = nn.LayerNorm(dim)
        self.attention = CrossAttention(dim, num_heads, batch_first=True)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        dim = self.query.shape[1]
        init.trunc_normal_(self.query, std=0.02)
        init.copy_(self.position, sincos_2d(dim, self.C))
        init.copy_(self.attention.in_proj_weight, torch.eye(dim).repeat(3, 1))
        init.zeros_(self.attention.in_proj_bias)
        init.eye_(self.attention.out_proj.weight)
        init.zeros_(self.attention.out_proj.bias)

    def num_tokens(self, height: int, width: int) -> int:
        return self.C**2

    def forward(self, patches_FPD: Tensor, height: int, width: int) -> Tensor:
        patches_FPD = self.norm_patches(patches_FPD)
        query_KD = self.norm_query(self.query) + self.position
        keys_FPD = patches_FPD + self._patch_positions(height, width).to(patches_FPD.dtype)
        query_FKD = query_KD.to(patches_FPD.dtype).expand(len(patches_FPD), -1, -1)
        return self.attention(query_FKD, keys_FPD, patches_FPD)[0]

    def _patch_positions(self, height: int, width: int) -> Tensor:
        """Positions of the queries, interpolated to the patches' grid: [P, D]."""
        grid_1DCC = self.position.float().reshape(1, self.C, self.C, -1).permute(0, 3, 1, 2)
        grid = functional.interpolate(grid_1DCC, size=(height, width), mode="bicubic", align_corners=False)
        return grid.flatten(2)[0].T


def sincos_2d(dim: int, side: int) -> Tensor:
    """2D sin-cos positions [side², D] of a side x side grid, row-major: the first half of D encodes x, the second y."""
    frequency = 1 / 10000 ** (torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angle = torch.outer(torch.arange(side, dtype=torch.float64), frequency)
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)
    x = axis[None].expand(side, side, -1)
    y = axis[:, None].expand(side, side, -1)
    return torch.cat([x, y], dim=-1).reshape(side * side, dim).float()
