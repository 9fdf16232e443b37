"""No compression: every patch reaches the language model, as in LLaVA-v1.5."""

from torch import Tensor

from llava_mini.models.compressors.base import Compressor


class NoCompressor(Compressor):
    """All patches, unchanged."""

    def __init__(self, *, dim: int):
        super().__init__()

    def num_tokens(self, height: int, width: int) -> int:
        return height * width

    def forward(self, patches_FPD: Tensor, height: int, width: int) -> Tensor:
        return patches_FPD
