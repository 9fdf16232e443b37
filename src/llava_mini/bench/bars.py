"""How horizontal bars look in every picture of the bench."""

from __future__ import annotations

from matplotlib.axes import Axes

BLUE, PALE = "#0072B2", "#b6bcc6"  # the blue is Okabe and Ito's
GREY, INK = "#6b7280", "#1f2937"


def style_bars(axes: Axes) -> None:
    """Leave of the axes what bars with names need: a line below, figures under it, no ticks beside the names."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    axes.tick_params(axis="x", colors=GREY, labelsize=8.5)
    axes.tick_params(axis="y", length=0)
