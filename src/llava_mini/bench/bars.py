"""Style of the horizontal bars in every benchmark plot."""

from __future__ import annotations

from matplotlib.axes import Axes

BLUE, PALE = "#0072B2", "#b6bcc6"  # the blue is Okabe and Ito's
GRAY, INK = "#6b7280", "#1f2937"


def style_bars(axes: Axes) -> None:
    """Reduce the axes to what named bars need: a line below, numbers under it, no ticks next to the names."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRAY)
    axes.tick_params(axis="x", colors=GRAY, labelsize=8.5)
    axes.tick_params(axis="y", length=0)
