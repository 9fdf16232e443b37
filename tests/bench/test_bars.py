"""Bars have a line below and nothing else around them."""

from matplotlib.colors import same_color
from matplotlib.figure import Figure

from llava_mini.bench.bars import GRAY, style_bars


def test_bars_have_a_line_below_alone() -> None:
    axes = Figure().subplots()
    axes.barh(["a", "b"], [1, 2])
    style_bars(axes)
    assert [name for name, spine in axes.spines.items() if spine.get_visible()] == ["bottom"]
    assert same_color(axes.spines["bottom"].get_edgecolor(), GRAY)
    assert {tick.tick1line.get_markersize() for tick in axes.yaxis.get_major_ticks()} == {0}
