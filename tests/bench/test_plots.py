"""Bars are stacked from their parts, the first on top, with their texts at their ends."""

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation

from llava_mini.bench.plots import Bar, draw_bars
from llava_mini.bench.timing import Spread


def test_bars_are_stacked_and_named_at_their_ends() -> None:
    axes, colors = Figure().subplots(), ("red", "blue")
    draw_bars(axes, "s", [Bar("a", (1, 2), colors, "3"), Bar("b", (1, 1), colors, "2", Spread(2, 1, 4))], room=2)
    drawn = [(each.get_x(), each.get_width()) for each in axes.patches if isinstance(each, Rectangle)]
    assert drawn == [(0, 1), (0, 1), (1, 2), (1, 1)]
    assert [(each.get_text(), each.xy) for each in axes.texts if isinstance(each, Annotation)] == [
        ("3", (3, 0)),
        ("2", (4, 1)),
    ]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert axes.get_ylim() == (1.5, -0.5) and axes.get_xlim() == (0, 8)
