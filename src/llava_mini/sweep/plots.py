"""The three pictures of a report: accuracy against tokens, against prefill FLOPs, and by kind of question.

Colour says compressor (and other varied values), a dashed line with hollow points says no pre-fusion; every series is
labelled where it ends. Bars are 95 % intervals, small dots the single seeds.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llava_mini.sweep.analysis import Analysis
from llava_mini.sweep.configurations import Configuration
from llava_mini.sweep.statistics import Interval
from llava_mini.sweep.text import operations

# Okabe and Ito's, which people who see fewer colours tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#5B4B9A")
_GREY, _INK = "#6b7280", "#1f2937"
_LEGEND = "N: pre-fusion layers. Bars: 95 % intervals. Small dots: seeds. Dotted: the uncompressed reference."
_MARKERS = ("o", "s", "^", "D", "v", "P")


@dataclass(frozen=True)
class Series:
    """Configurations that differ in C only, and how they are drawn."""

    name: str
    members: list[Configuration]
    colour: str
    marker: str
    dashed: bool


def draw_all(analysis: Analysis, folder: Path) -> dict[str, Path]:
    """Writes the PNGs; name -> file.

    Raises:
        ValueError: when there is no configuration to draw.
    """
    figures = {
        "accuracy_vs_tokens": against_tokens(analysis),
        "accuracy_vs_flops": against_flops(analysis),
        "accuracy_by_kind": by_kind(analysis),
    }
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=160, metadata={"Software": None})
    return {name: folder / f"{name}.png" for name in figures}


def against_tokens(analysis: Analysis) -> Figure:
    """Accuracy over vision tokens a frame: 0, then powers of two at equal distances."""
    figure, axes = _figure("Vision tokens of an image that reach the language model", analysis.split)
    _draw(axes, analysis, lambda c: _token_position(c.tokens))
    counts = sorted({c.tokens for c in analysis.configurations})
    axes.set_xticks([_token_position(count) for count in counts], [str(count) for count in counts])
    return figure


def against_flops(analysis: Analysis) -> Figure:
    """Accuracy over the operations of a prefill, which is what fewer tokens save; numbers are tokens."""
    figure, axes = _figure("Prefill cost of one question (small numbers: vision tokens)", analysis.split)
    _draw(axes, analysis, lambda c: math.log10(c.prefill_flops))
    lowest: dict[tuple[int, float], tuple[float, float]] = {}  # one number for points that nearly share a place
    for configuration in analysis.configurations:
        place, low = math.log10(configuration.prefill_flops), 100 * configuration.accuracy.low
        here = (configuration.tokens, round(place, 1))
        lowest[here] = min((low, place), lowest.get(here, (low, place)))
    for (tokens, _), (low, place) in lowest.items():
        axes.annotate(
            str(tokens), (place, low), (0, -10), textcoords="offset points", ha="center", fontsize=7.5, color=_GREY
        )
    low, high = axes.get_xlim()
    ticks = round_numbers(10**low, 10**high)
    axes.set_xticks([math.log10(tick) for tick in ticks], [operations(tick) for tick in ticks])
    return figure


def by_kind(analysis: Analysis) -> Figure:
    """A panel for each kind of question, a row for each configuration."""
    configurations = analysis.configurations[::-1]
    columns = min(3, len(analysis.kinds)) or 1
    rows = math.ceil(len(analysis.kinds) / columns) or 1
    figure = Figure(figsize=(10, rows * (0.9 + 0.23 * len(configurations))), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    styles = {id(c): series for series in _series(analysis) for c in series.members}
    for index, axes in enumerate(grid.flat):
        if index >= len(analysis.kinds):
            axes.set_axis_off()
            continue
        _clean(axes, "x")
        axes.set_title(_plain(analysis.kinds[index]), fontsize=10, color=_INK, loc="left", weight="bold")
        for row, configuration in enumerate(configurations):
            _point(axes, configuration.by_kind[analysis.kinds[index]], row, styles[id(configuration)])
        axes.set_yticks(range(len(configurations)), [_plain(c.label) for c in configurations], fontsize=7.5)
        axes.set_ylim(-0.7, len(configurations) - 0.3)
    figure.supxlabel(f"{analysis.split.capitalize()} accuracy, %, with 95 % interval", fontsize=9, color=_INK)
    return figure


def _series(analysis: Analysis) -> list[Series]:
    groups = defaultdict[str, list[Configuration]](list)
    for configuration in analysis.configurations:
        groups[configuration.series].append(configuration)
    looks = sorted({_look(c) for c in analysis.configurations if not c.reference})
    depths = sorted({c.n_fusion for c in analysis.configurations if c.n_fusion})
    made = []
    for name, members in sorted(groups.items()):
        first = members[0]
        colour = _INK if first.reference else _COLOURS[looks.index(_look(first)) % len(_COLOURS)]
        marker = _MARKERS[depths.index(first.n_fusion) % len(_MARKERS)] if first.n_fusion else "o"
        made.append(Series(name, sorted(members, key=lambda c: c.tokens), colour, marker, first.n_fusion == 0))
    return made


def _look(configuration: Configuration) -> str:
    """What a colour stands for."""
    return repr((configuration.compressor, configuration.values))


def _figure(x_label: str, split: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.4, 5.0), layout="constrained")
    axes = figure.subplots()
    _clean(axes, "y")
    axes.set_xlabel(x_label, fontsize=9, color=_INK)
    axes.set_ylabel(f"{split.capitalize()} accuracy, %", fontsize=9, color=_INK)
    axes.set_title(_LEGEND, fontsize=8, color=_GREY, loc="left")
    return figure, axes


def _clean(axes: Axes, grid: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#d1d5db")
    axes.grid(axis="x" if grid == "x" else "y", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_GREY, labelsize=8.5, length=0)


def _draw(axes: Axes, analysis: Analysis, position: Callable[[Configuration], float]) -> None:
    series = _series(analysis)
    for reference in (c for c in analysis.configurations if c.reference):
        axes.axhspan(100 * reference.accuracy.low, 100 * reference.accuracy.high, color=_INK, alpha=0.07, linewidth=0)
        axes.axhline(100 * reference.accuracy.value, color=_INK, linewidth=0.9, linestyle=(0, (1, 2)))
    places = [position(c) for c in analysis.configurations]
    span = max(places) - min(places) or 1.0
    taken: Counter[float] = Counter()
    ends = []
    for one in series:
        x = []
        for place in map(position, one.members):  # bars at one place stand side by side
            same = [round(other, 2) for other in places].count(round(place, 2))
            x.append(place + 0.011 * span * (taken[round(place, 2)] - (same - 1) / 2))
            taken[round(place, 2)] += 1
        _line(axes, x, one, 0.006 * span)
        ends.append((x[-1], 100 * one.members[-1].accuracy.value, one))
    axes.set_xlim(min(places) - 0.06 * span, max(places) + 0.06 * span)
    far = [end for end in ends if len(end[2].members) > 1 or end[0] > max(places) - 0.2 * span]
    _label_ends(axes, far)
    for x_end, y_end, one in ends:
        if (x_end, y_end, one) not in far:
            axes.annotate(
                _plain(one.name), (x_end, y_end), (7, 9), textcoords="offset points", color=one.colour, fontsize=8.5
            )


def _line(axes: Axes, x: Sequence[float], series: Series, beside: float) -> None:
    y = [100 * c.accuracy.value for c in series.members]
    below = [100 * (c.accuracy.value - c.accuracy.low) for c in series.members]
    above = [100 * (c.accuracy.high - c.accuracy.value) for c in series.members]
    axes.errorbar(
        x,
        y,
        [below, above],
        color=series.colour,
        linestyle=(0, (4, 2)) if series.dashed else "-",
        linewidth=1.6,
        elinewidth=1.1,
        capsize=2.5,
        marker=series.marker,
        markersize=6,
        markerfacecolor="white" if series.dashed else series.colour,
    )
    for place, configuration in zip(x, series.members, strict=True):
        seeds = list(configuration.by_seed.values())
        if len(seeds) > 1:
            x_seeds = [place + beside] * len(seeds)
            axes.scatter(x_seeds, [100 * seed for seed in seeds], s=8, color=series.colour, alpha=0.6, linewidths=0)


def _point(axes: Axes, interval: Interval, row: int, series: Series) -> None:
    axes.errorbar(
        [100 * interval.value],
        [row],
        xerr=[[100 * (interval.value - interval.low)], [100 * (interval.high - interval.value)]],
        color=series.colour,
        elinewidth=1.2,
        capsize=2,
        marker=series.marker,
        markersize=4.5,
        markerfacecolor="white" if series.dashed else series.colour,
    )


def _label_ends(axes: Axes, ends: Sequence[tuple[float, float, Series]]) -> None:
    """Names the series right of the plot, pushed apart where they would overlap, each tied to its last point."""
    low, high = axes.get_ylim()
    right = axes.get_xlim()[1]
    ends = sorted(ends, key=lambda end: end[1])
    for (x, y, series), label_y in zip(ends, spread([y for _, y, _ in ends], (high - low) * 0.043, high), strict=True):
        axes.annotate(
            _plain(series.name),
            (x, y),
            (right, label_y),
            color=series.colour,
            fontsize=8.5,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": series.colour, "alpha": 0.3, "linewidth": 0.8, "shrinkB": 4},
        )


def spread(places: Sequence[float], gap: float, highest: float) -> list[float]:
    """Ascending places moved apart to at least `gap`, upwards and then, where they pass `highest`, downwards."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else place)
    limit = highest
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - gap
    return moved


def round_numbers(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, 20, ... between two numbers, or all of one leading digit where those would be fewer than two."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), range(1, 10), [digit / 10 for digit in range(10, 100)]):
        found = [digit * 10.0**exponent for exponent in exponents for digit in digits]
        inside = [number for number in found if low <= number <= high]
        if len(inside) > 1:
            return inside
    return [low]


def _token_position(tokens: int) -> float:
    """0 tokens stand one step before 1."""
    return math.log2(tokens) if tokens else -1.0


def _plain(text: str) -> str:
    """Short enough for a label, and without the $ that begins a formula in matplotlib."""
    return (text if len(text) <= 48 else f"{text[:45]}...").replace("$", r"\$")
