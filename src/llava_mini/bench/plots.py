"""Horizontal bars of the benchmarks' plots: one style, with the numbers at their ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llava_mini.bench.timing import Spread

BLUE, PALE = "#0072B2", "#b6bcc6"  # the blue is Okabe and Ito's
GRAY, INK, GRID = "#6b7280", "#1f2937", "#e5e7eb"


class Bar(NamedTuple):
    """A bar: its name, the lengths and colors of its parts, the text at its end, and the range of its length."""

    name: str
    parts: Sequence[float]
    colors: Sequence[str]
    text: str
    spread: Spread | None = None


def draw_bars(axes: Axes, title: str, bars: Sequence[Bar], parts: Sequence[str] = (), room: float = 1.2) -> None:
    """Draw bars with equally many parts from top to bottom, on axes `room` times as wide as the longest bar.

    `parts` are the names of the parts, for a legend.
    """
    rows, ends = range(len(bars)), [0.0] * len(bars)
    for number in range(len(bars[0].parts)):
        widths, colors = [bar.parts[number] for bar in bars], [bar.colors[number] for bar in bars]
        label = parts[number] if parts else None
        axes.barh(rows, widths, left=ends, color=colors, height=0.66, label=label)
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    for row, (bar, end) in enumerate(zip(bars, ends, strict=True)):
        if bar.spread is not None:
            axes.plot([bar.spread.least, bar.spread.most], [row, row], color=INK)
            ends[row] = end = bar.spread.most
        axes.annotate(bar.text, (end, row), (5, 0), textcoords="offset points", va="center", fontsize=8.5, color=INK)
    axes.set_yticks(rows, [bar.name for bar in bars], fontsize=8.5, color=INK)
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlim(0, room * max(ends))
    axes.set_title(title, loc="left", fontsize=10, weight="bold", color=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRAY)
    axes.tick_params(axis="x", colors=GRAY, labelsize=8.5)
    axes.tick_params(axis="y", length=0)


def add_note(figure: Figure, text: str) -> None:
    """Write a note below the plots, on the right."""
    figure.supxlabel(text, fontsize=8.5, color=GRAY, x=0.99, ha="right")
