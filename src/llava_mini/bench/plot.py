"""Plot of the data path benchmark: CPU time and memory of every loader, ours in blue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llava_mini.bench.bars import BLUE, GRAY, INK, PALE, style_bars
from llava_mini.bench.data_path import OWN, OWN_SMALL, Findings
from llava_mini.bench.report import ORDER
from llava_mini.bench.stopwatch import Spread

_ROWS = ORDER[::-1]  # bars are drawn from bottom to top


def draw(found: Findings, path: Path) -> None:
    """Write the plot as a PNG."""
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    time, memory = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    costs = [[cost.cpu for cost in found.costs[name]] for name in _ROWS]
    _bars(time, "CPU-milliseconds a sample", [Spread.of(values).median for values in costs], "{:.2f}")
    for row, values in enumerate(costs):
        time.plot(values, [row] * len(values), "o", color=INK, markersize=2.5, alpha=0.6)
    _bars(memory, "MiB of private memory while loading", [found.loading(name) for name in _ROWS], "{:.0f}")
    time.set_yticks(range(len(_ROWS)), _ROWS, fontsize=9.5, color=INK)
    figure.supxlabel(
        "Bars: medians; dots: rounds. One process, one thread.", fontsize=8.5, color=GRAY, x=0.99, ha="right"
    )
    figure.savefig(path, dpi=150, metadata={"Software": None})


def _bars(axes: Axes, title: str, values: Sequence[float], shown: str) -> None:
    colors = [BLUE if name in (OWN, OWN_SMALL) else PALE for name in _ROWS]
    axes.barh(range(len(_ROWS)), values, color=colors, height=0.66)
    for row, value in enumerate(values):
        axes.annotate(
            shown.format(value), (value, row), (9, 0), textcoords="offset points", va="center", fontsize=9, color=INK
        )
    axes.set_title(title, loc="left", fontsize=10.5, weight="bold", color=INK)
    axes.set_xlim(0, 1.15 * max(values))
    style_bars(axes)
    axes.grid(axis="x", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
