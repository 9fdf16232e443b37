"""Plot of `data stats`: what a shard set consists of, and how long its conversations and videos are."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator

from llava_mini.data.format.index import Modality
from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.inspection.stats import Distribution, Statistics, by_source
from llava_mini.errors import UserError

# Okabe-Ito palette, which color-blind people can distinguish.
_COLORS = {Modality.TEXT: "#E69F00", Modality.IMAGE: "#0072B2", Modality.VIDEO: "#009E73"}
_GRAY, _INK = "#6b7280", "#1f2937"
_MOST_SOURCES = 12
_MOST_BARS = 40


def draw(shards: ShardSet, found: Statistics, path: Path) -> None:
    """Write the plot as a PNG.

    Raises:
        UserError: the folder cannot be made or written.
    """
    figure = Figure(figsize=(11, 7), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))
    sources, turns, text, images = figure.subplots(2, 2).flat
    _draw_sources(sources, shards)
    _draw_counts(turns, "Turns of a sample", found.turns, _GRAY)
    _draw_text(text, found.text)
    if len(found.frames):  # else images: most samples of a mix have one, which says little
        _draw_counts(images, "Frames of a video", found.frames, _COLORS[Modality.VIDEO])
    else:
        _draw_counts(images, "Images of a sample", found.images, _COLORS[Modality.IMAGE])
    handles = [
        Patch(color=_COLORS[kind], label=f"{kind.name.lower()} ({len(lengths):,})")
        for kind, lengths in found.text.items()
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=3, frameon=False, fontsize=10, labelcolor=_INK)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, metadata={"Software": None})
    except OSError as error:
        why = f"out={path.parent} cannot be written ({error.strerror})"
        raise UserError(why, key="out", value=path.parent) from None


def _draw_sources(axes: Axes, shards: ShardSet) -> None:
    """Draw a bar for each source, stacked by modality, with the largest source on top."""
    _clean(axes, "Samples by source", "x")
    index, names = shards.index, [count.name for count in by_source(shards)]
    sources = [source or "(none)" for source in shards.sources]
    rows = {sources.index(name): row for row, name in enumerate(names[:_MOST_SOURCES])}
    rest = len(names) > _MOST_SOURCES
    row_of = np.array([rows.get(source, _MOST_SOURCES) for source in range(len(sources))])
    height = len(rows) + rest
    left = np.zeros(height, np.int64)
    for kind, color in _COLORS.items():
        counts = np.bincount(row_of[index["source"][index["modality"] == kind]], minlength=height)
        axes.barh(range(height), counts, left=left, color=color, height=0.7)
        left += counts
    for row, total in enumerate(left.tolist()):
        axes.annotate(
            f"{total:,}", (total, row), (4, 0), textcoords="offset points", va="center", fontsize=8.5, color=_GRAY
        )
    labels = [*names[:_MOST_SOURCES], *(["all others"] if rest else [])]
    short = (text if len(text) <= 28 else f"{text[:25]}..." for text in labels)
    axes.set_yticks(range(height), [text.replace("$", r"\$") for text in short])  # $ begins a formula in matplotlib
    axes.set_ylim(max(height, 3) - 0.4, -0.6)
    axes.set_xlim(0, max(1.0, 1.15 * left.max()))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(_thousands)


def _draw_counts(axes: Axes, title: str, found: Distribution, color: str) -> None:
    """Draw bars that each cover the same number of integers."""
    _clean(axes, title, "y")
    if len(found):
        first, last = int(found.values[0]), int(found.values[-1])
        width = -(-(last - first + 1) // _MOST_BARS)
        edges = np.arange(first, last + width + 1, width) - 0.5
        axes.hist(found.values, edges.tolist(), weights=found.counts, color=color, rwidth=0.9)
    else:
        axes.annotate("none", (0.5, 0.5), xycoords="axes fraction", ha="center", color=_GRAY)
    _count_axes(axes)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))


def _draw_text(axes: Axes, text: dict[Modality, Distribution]) -> None:
    """Draw text lengths in bins of equal ratio, since they differ by orders of magnitude."""
    _clean(axes, "Characters of a sample's conversation", "y")
    present = {kind: Distribution(lengths.values.clip(1), lengths.counts) for kind, lengths in text.items()}
    shortest = min(int(lengths.values[0]) for lengths in present.values())
    longest = max(int(lengths.values[-1]) for lengths in present.values())
    axes.hist(
        [lengths.values for lengths in present.values()],
        np.geomspace(shortest, max(longest + 1, 10 * shortest), _MOST_BARS + 1).tolist(),
        weights=[lengths.counts for lengths in present.values()],
        stacked=True,
        color=[_COLORS[kind] for kind in present],
        rwidth=0.9,
    )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(_thousands)
    axes.xaxis.set_minor_locator(NullLocator())
    _count_axes(axes)


def _clean(axes: Axes, title: str, grid: Literal["x", "y"]) -> None:
    axes.set_title(title, loc="left", fontsize=10.5, color=_INK, weight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#d1d5db")
    axes.grid(axis=grid, color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_GRAY, labelsize=8.5, length=0)


def _count_axes(axes: Axes) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(_thousands)
    axes.set_ylabel("samples", fontsize=9, color=_GRAY)


def _thousands(value: float, _position: float) -> str:
    return f"{value:,.0f}"
