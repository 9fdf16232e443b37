"""The zero control: whatever the image, no token."""

import torch

from llava_mini.models.compressors.zero import ZeroCompressor


def test_no_token_for_any_grid() -> None:
    compressor = ZeroCompressor(dim=5)
    for height, width in ((4, 4), (8, 8), (1, 3)):
        assert compressor.num_tokens(height, width) == 0
        assert compressor(torch.randn(2, height * width, 5), height, width).shape == (2, 0, 5)
