"""Sizes as text."""

import pytest

from llava_mini.units import size_text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (3 * 2**29, "1.50 GiB"),
        (103 * 2**20, "0.10 GiB"),
        (102 * 2**20, "102.00 MiB"),
        (103 * 2**10, "0.10 MiB"),
        (10 * 2**10, "10.00 KiB"),
        (0, "0.00 KiB"),
        (-(2**30), "-1.00 GiB"),
        (5 * 2**50, "5,242,880.00 GiB"),
    ],
)
def test_a_size_has_the_unit_that_shows_it(size: int, text: str) -> None:
    assert size_text(size) == text
