"""Shapes cover what they should, and pasting between pixels keeps their weight."""

import numpy as np
import pytest

from llava_mini.data.toyworld.drawing import COLORS, SHAPES, background, jittered_color, paste, shape_mask


@pytest.mark.parametrize("shape", SHAPES)
def test_masks_fill_their_square(shape: str) -> None:
    for size in (11, 14):
        mask = shape_mask(shape, size)
        assert mask.shape == (size, size)
        assert 0 <= mask.min() < 0.3
        assert 0.9 < mask.max() <= 1
        assert 0.2 < mask.mean() < 0.95
    assert (shape_mask(shape, 14)[7, 7] < 0.1) == (shape == "ring")


def test_shapes_differ() -> None:
    masks = [shape_mask(shape, 14) for shape in SHAPES]
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert np.abs(one - other).mean() > 0.1


def test_an_unknown_shape_is_named() -> None:
    with pytest.raises(ValueError, match="unknown shape 'hexagon'"):
        shape_mask("hexagon", 12)


@pytest.mark.parametrize(("x", "y"), [(3.0, 5.0), (3.25, 5.5), (49.9, 0.1)])
def test_a_position_between_pixels_moves_the_centre_of_mass(x: float, y: float) -> None:
    picture = np.zeros((64, 64, 3), np.float32)
    paste(picture, np.ones((14, 14), np.float32), x, y, np.array((1, 2, 3), np.float32))
    weight = picture[..., 0]
    assert weight.sum() == pytest.approx(196, rel=1e-4)
    assert (weight.sum(0) @ np.arange(64)) / 196 == pytest.approx(x + 6.5, abs=1e-3)
    assert (weight.sum(1) @ np.arange(64)) / 196 == pytest.approx(y + 6.5, abs=1e-3)
    assert np.allclose(picture[..., 2], 3 * weight)


def test_backgrounds_are_grey_on_the_whole() -> None:
    rng = np.random.default_rng(0)
    pictures = np.stack([background(rng) for _ in range(40)])
    assert pictures.mean((1, 2)).min() > 60
    assert pictures.mean((1, 2)).max() < 125
    assert 8 < pictures.std((1, 2)).mean() < 25


def test_colors_stay_recognizable() -> None:
    rng = np.random.default_rng(0)
    table = np.array(list(COLORS.values()), np.float32)
    for number, color in enumerate(COLORS):
        drawn = np.stack([jittered_color(rng, color) for _ in range(50)])
        assert (np.abs(drawn[:, None] - table).sum(2).argmin(1) == number).all()
