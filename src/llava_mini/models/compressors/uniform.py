"""Control: C² patches taken unchanged from a regular grid, regardless of what they show."""

import torch
from torch import Tensor

from llava_mini.models.compressors.base import Compressor, grid_side


class UniformCompressor(Compressor):
    """The patch at the center of each of C x C cells; a C beyond the side of the patches' grid repeats patches.

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
        cell = torch.arange(self.C, device=patches_FPD.device)
        row = (2 * cell + 1) * height // (2 * self.C)
        column = (2 * cell + 1) * width // (2 * self.C)
        return patches_FPD[:, (row[:, None] * width + column).flatten()]
