"""The largest batch fits, one more does not, and few steps are planned."""

import pytest

from llava_mini.plan.search import largest_batch


@pytest.mark.parametrize("limit", [50, 99, 104, 112, 128, 150, 233, 1000, 5017])
@pytest.mark.parametrize("start", [1, 2, 16, 60])
def test_largest_batch_fits_and_one_more_does_not(limit: int, start: int) -> None:
    planned = []

    def peak_of(size: int) -> int:
        planned.append(size)
        return max(100 + 10 * size, 40 + 13 * size) - 5 * (size == 1)

    found = largest_batch(peak_of, limit, start, 4096)
    count = len(planned)
    assert found == 0 or peak_of(found) <= limit
    assert peak_of(found + 1) > limit
    assert count <= 7


def test_what_does_not_grow_ends_at_the_largest() -> None:
    assert largest_batch(lambda size: 10, 20, 1, 4096) == 4096


def test_no_more_than_the_most_is_asked_for() -> None:
    planned = []

    def peak_of(size: int) -> int:
        planned.append(size)
        return size

    assert largest_batch(peak_of, 500, 10_000, 40) == 40
    assert max(planned) == 40
