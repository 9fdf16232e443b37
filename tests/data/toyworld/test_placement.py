"""Areas stay inside, keep a gap, and come as asked."""

import numpy as np

from llava_mini.data.toyworld.placement import free_areas


def test_areas_have_the_sides_asked_for_and_stay_apart() -> None:
    rng = np.random.default_rng(0)
    sides = [(36.0, 12.0), (14.0, 14.0), (11.0, 11.0), (13.0, 13.0), (12.0, 12.0)]
    for _ in range(200):
        areas = free_areas(rng, sides)
        assert [(width, height) for _, _, width, height in areas] == sides
        covered = np.zeros((640, 640), int)  # tenths of a pixel
        for x, y, width, height in areas:
            assert 0 <= x <= 64 - width
            assert 0 <= y <= 64 - height
            left, top, right, bottom = (np.array([x, y, x + width + 0.9, y + height + 0.9]) * 10).astype(int)
            covered[top:bottom, left:right] += 1
        assert covered.max() == 1


def test_what_does_not_fit_at_first_begins_anew() -> None:
    """With one try a piece fails often; the answer is still complete."""
    areas = free_areas(np.random.default_rng(0), [(30.0, 30.0)] * 3, tries=1)
    assert len(areas) == 3
