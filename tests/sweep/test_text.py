"""Numbers as text."""

import pytest

from llava_mini.sweep.statistics import Estimate
from llava_mini.sweep.text import (
    duration,
    group_head,
    on_group,
    operations,
    percent,
    percent_range,
    points,
    points_range,
)


def test_percents_and_points() -> None:
    interval = Estimate(0.5, (-0.0212, 0.0034))
    assert percent(0.8991) == "89.9"
    assert percent_range(Estimate(0.9, (0.881, 0.91))) == "88.1\N{EN DASH}91.0"
    assert points(0.0123) == "+1.2"
    assert points(-0.0123) == "\N{MINUS SIGN}1.2"
    assert points(-0.0001) == points(0.0) == "0.0"
    assert points_range(interval) == "\N{MINUS SIGN}2.1 to +0.3"
    assert percent_range(Estimate(0.9)) == points_range(Estimate(0.9)) == ""


@pytest.mark.parametrize(
    ("flops", "text"),
    [(0, "0 FLOPs"), (999, "999 FLOPs"), (12_340_000, "12.3 MFLOPs"), (8.55e12, "8.55 TFLOPs"), (999.9e6, "1 GFLOPs")],
)
def test_operations(flops: float, text: str) -> None:
    assert operations(flops) == text


def test_times_and_sizes() -> None:
    assert [duration(seconds) for seconds in (5, 90, 9000)] == ["5 s", "1.5 min", "2.5 h"]


def test_groups_are_named_where_there_are_two() -> None:
    both = ["dense", "one_word"]
    assert [group_head(group, both) for group in both] == ["Dense answers", "One-word answers"]
    assert [on_group(group, both) for group in both] == [" on dense answers", " on one-word answers"]
    assert (group_head("one_word", ["one_word"]), on_group("one_word", ["one_word"])) == ("Word accuracy", "")
