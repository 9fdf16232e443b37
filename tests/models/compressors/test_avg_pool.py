"""Average pooling: the mean over each of C x C bins, row-major."""

import torch

from llava_mini.models.compressors.avg_pool import AveragePoolCompressor

PATCHES = torch.randn(2, 16, 5, generator=torch.Generator().manual_seed(0))


def test_one_token_is_the_mean_of_all_patches_wherever_they_lie() -> None:
    pooled = AveragePoolCompressor(dim=5, C=1)(PATCHES, 4, 4)
    torch.testing.assert_close(pooled, PATCHES.mean(1, keepdim=True))
    torch.testing.assert_close(AveragePoolCompressor(dim=5, C=1)(PATCHES.flip(1), 4, 4), pooled)


def test_bins_are_row_major() -> None:
    pooled = AveragePoolCompressor(dim=5, C=2)(PATCHES, 4, 4)
    corners = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    torch.testing.assert_close(pooled, torch.stack([PATCHES[:, corner].mean(1) for corner in corners], dim=1))


def test_patches_may_change_places_within_a_bin_only() -> None:
    compressor = AveragePoolCompressor(dim=5, C=2)
    pooled = compressor(PATCHES, 4, 4)
    within, across = torch.arange(16), torch.arange(16)
    within[[0, 1, 4, 5]] = torch.tensor([5, 4, 1, 0])
    across[[0, 15]] = torch.tensor([15, 0])
    torch.testing.assert_close(compressor(PATCHES[:, within], 4, 4), pooled)
    assert (compressor(PATCHES[:, across], 4, 4) - pooled).abs().max() > 0.1


def test_a_grid_of_its_own_size_is_kept() -> None:
    torch.testing.assert_close(AveragePoolCompressor(dim=5, C=4)(PATCHES, 4, 4), PATCHES)
