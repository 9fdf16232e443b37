"""No compression: patches come out as and where they went in."""

import torch

from llava_mini.models.compressors.none import NoCompressor


def test_every_patch_in_its_place() -> None:
    patches, order = torch.randn(2, 16, 5), torch.randperm(16)
    assert torch.equal(NoCompressor(dim=5)(patches, 4, 4), patches)
    assert torch.equal(NoCompressor(dim=5)(patches[:, order], 4, 4), patches[:, order])
