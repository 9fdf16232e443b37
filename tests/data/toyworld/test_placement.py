"""Areas stay inside, keep a gap, come as asked, and leave the ways free."""

import numpy as np
import pytest

from llava_mini.data.toyworld.drawing import Area, free_areas


def covered(area: Area, gap: float = 0.0) -> np.ndarray:
    """[640, 640] bool, tenths of a pixel."""
    x, y, width, height = area
    left, top, right, bottom = (np.array([x, y, x + width + gap, y + height + gap]) * 10).astype(int)
    picture = np.zeros((640, 640), bool)
    picture[top:bottom, left:right] = True
    return picture


def test_areas_have_the_sizes_asked_for_and_stay_apart() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        areas = free_areas(rng, [14, 14, 11, 13, 12])
        assert [(width, height) for _, _, width, height in areas] == [(s, s) for s in (14, 14, 11, 13, 12)]
        assert all(0 <= x <= 64 - width and 0 <= y <= 64 - height for x, y, width, height in areas)
        assert sum(covered(area, gap=0.9).astype(int) for area in areas).max() == 1


def test_nothing_is_in_the_way_of_another() -> None:
    rng = np.random.default_rng(0)
    ways = [(24.0, 0.0), (0.0, 30.0), (0.0, 0.0), (0.0, 0.0)]
    for _ in range(100):
        areas = free_areas(rng, [12, 13, 14, 14], ways)
        for number, ((x, y, width, height), (right, down)) in enumerate(zip(areas, ways, strict=True)):
            reach = (x - right / 2, y - down / 2, width + right, height + down)
            assert min(reach[:2]) >= 0
            assert max(reach[0] + reach[2], reach[1] + reach[3]) <= 64
            others = [area for other, area in enumerate(areas) if other != number]
            assert not any((covered(reach) & covered(area)).any() for area in others)


def test_what_does_not_fit_at_first_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one try an area fails often; the answer is still complete."""
    monkeypatch.setattr("llava_mini.data.toyworld.drawing._TRIES", 1)
    assert len(free_areas(np.random.default_rng(0), [30] * 3)) == 3
