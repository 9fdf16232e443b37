"""Control: no vision token reaches the language model, which learns of the image only what pre-fused text contains."""

from torch import Tensor

from llava_mini.models.compressors.base import Compressor


class ZeroCompressor(Compressor):
    """Zero tokens for a frame."""

    def __init__(self, *, dim: int):
        super().__init__()

    def num_tokens(self, height: int, width: int) -> int:
        return 0

    def forward(self, patches_FPD: Tensor, height: int, width: int) -> Tensor:
        return patches_FPD[:, :0]
