"""Numbers as text."""

import pytest

from llava_mini.sweep.statistics import Interval
from llava_mini.sweep.text import duration, memory, operations, percent, percent_range, points, points_range, tokens


def test_percents_and_points() -> None:
    interval = Interval(0.5, -0.0212, 0.0034)
    assert percent(0.8991) == "89.9"
    assert percent_range(Interval(0.9, 0.881, 0.91)) == "88.1\N{EN DASH}91.0"
    assert points(0.0123) == "+1.2"
    assert points(-0.0123) == "\N{MINUS SIGN}1.2"
    assert points(-0.0001) == points(0.0) == "0.0"
    assert points_range(interval) == "\N{MINUS SIGN}2.1 to +0.3"


@pytest.mark.parametrize(
    ("flops", "text"),
    [(0, "0 FLOPs"), (999, "999 FLOPs"), (12_340_000, "12.3 MFLOPs"), (8.55e12, "8.55 TFLOPs"), (999.9e6, "1 GFLOPs")],
)
def test_operations(flops: float, text: str) -> None:
    assert operations(flops) == text


def test_times_sizes_and_tokens() -> None:
    assert [duration(seconds) for seconds in (5, 90, 9000)] == ["5 s", "1.5 min", "2.5 h"]
    assert memory(612_000_000) == "0.61 GB"
    assert [tokens(count) for count in (0, 1, 64)] == ["no vision tokens", "1 vision token", "64 vision tokens"]
