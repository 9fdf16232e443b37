"""Adaptive average pooling of the patches' grid to C x C tokens.

This is the parameter-free alternative to query compression (paper, Table 7).
"""

from torch import Tensor
from torch.nn import functional

from llava_mini.models.compressors.base import Compressor, grid_side


class AveragePoolCompressor(Compressor):
    """Mean over C x C bins of patches.

    Args:
        dim: Width of the patches.
        C: Side of the compression grid.
    """

    def __init__(self, *, dim: int, C: int):
        super().__init__()
        self.C = grid_side(C)

    def num_tokens(self, height: int, width: int) -> int:
        return self.C**2

    def forward(self, patches_FPD: Tensor, height: int, width: int) -> Tensor:
        frames, _, dim = patches_FPD.shape
        grid_FDHW = patches_FPD.transpose(1, 2).reshape(frames, dim, height, width)
        return functional.adaptive_avg_pool2d(grid_FDHW, self.C).flatten(2).transpose(1, 2)
