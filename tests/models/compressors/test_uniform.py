"""The uniform control: which patches it takes, and that it takes them as they are."""

import pytest
import torch

from llava_mini.models.compressors.uniform import UniformCompressor

PATCHES = torch.randn(2, 64, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("C", "side", "chosen"),
    [
        (1, 4, [10]),  # the centre of 4 x 4 lies between patches; the one right below it
        (2, 4, [5, 7, 13, 15]),
        (3, 3, list(range(9))),
        (2, 8, [18, 22, 50, 54]),
        (4, 2, [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]),  # a larger C repeats patches
    ],
)
def test_chosen_patches(C: int, side: int, chosen: list[int]) -> None:
    patches = PATCHES[:, : side * side]
    assert torch.equal(UniformCompressor(dim=5, C=C)(patches, side, side), patches[:, chosen])


def test_sides_that_differ() -> None:
    assert torch.equal(UniformCompressor(dim=5, C=2)(PATCHES[:, :24], 4, 6), PATCHES[:, [7, 10, 19, 22]])


def test_other_patches_do_not_matter() -> None:
    compressor = UniformCompressor(dim=5, C=2)
    changed = PATCHES[:, :16].clone()
    changed[:, [i for i in range(16) if i not in (5, 7, 13, 15)]] += 1
    assert torch.equal(compressor(changed, 4, 4), compressor(PATCHES[:, :16], 4, 4))
