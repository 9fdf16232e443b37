"""The three plots of a report: word accuracy against tokens, against prefill FLOPs, and by kind of question.

The first two have a panel for each group of question kinds, on one scale. A series contains configurations that differ
only in C. Line and marker show the compressor; color shows the pre-fusion layers and what else was varied. Bars are
95 % intervals over seeds and scenes. Small dots are single seeds. Points with too few seeds are gray, without bar or
line. Hollow points were still improving.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from llava_mini.files import atomic_path
from llava_mini.sweep.analysis import Analysis
from llava_mini.sweep.configurations import Configuration
from llava_mini.sweep.statistics import Estimate
from llava_mini.sweep.text import group_head, operations

_Line = Literal["-", "none"] | tuple[float, Sequence[float]]

# Okabe and Ito's palette, which people with color blindness can distinguish.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#5B4B9A")
_GRAY, _LIGHT, _INK = "#6b7280", "#9ca3af", "#1f2937"
_EXTENT = 10.0
_MARKERS = ("o", "s", "^", "v", "P", "X", "<", ">", "p", "D")
_LINES: tuple[_Line, ...] = ("-", (0, (5, 2)), (0, (1, 1.3)), (0, (5, 1.5, 1, 1.5)))


@dataclass(frozen=True)
class Series:
    """Configurations that differ only in C, and how they are drawn."""

    name: str
    members: list[Configuration]
    color: str
    marker: str
    line: _Line


def draw_all(analysis: Analysis, folder: Path) -> dict[str, Path]:
    """Write the plots as PNG files and return the files by name.

    Raises:
        ValueError: if there is no configuration to draw.
    """
    figures = {"accuracy_vs_tokens": against_tokens(analysis), "accuracy_vs_flops": against_flops(analysis)}
    if analysis.kinds:
        figures["accuracy_by_kind"] = by_kind(analysis)
    for name, figure in figures.items():
        with atomic_path(folder / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=160, metadata={"Software": None})
    return {name: folder / f"{name}.png" for name in figures}


def against_tokens(analysis: Analysis) -> Figure:
    """Plot word accuracy against vision tokens per frame: 0, then powers of two at equal distances."""
    figure = _figure(analysis, lambda c: _token_position(c.tokens), "Vision tokens of an image")
    counts = sorted({c.tokens for c in analysis.configurations})
    for axes in figure.axes:
        axes.set_xticks([_token_position(count) for count in counts], [str(count) for count in counts])
    return figure


def against_flops(analysis: Analysis) -> Figure:
    """Plot word accuracy against the operations of a prefill, which fewer tokens reduce; numbers are tokens."""
    figure = _figure(
        analysis, lambda c: math.log10(c.prefill_flops), "Prefill of one question (small numbers: vision tokens)"
    )
    for group, axes in zip(analysis.groups, figure.axes, strict=True):
        lowest: dict[tuple[int, float], tuple[float, float]] = {}  # one number for points nearly at the same place
        for configuration in (c for c in analysis.configurations if group in c.scores):
            place, low = math.log10(configuration.prefill_flops), _lowest(configuration, group)
            here = (configuration.tokens, round(place, 1))
            lowest[here] = min((low, place), lowest.get(here, (low, place)))
        for (tokens, _), (low, place) in lowest.items():
            axes.annotate(
                str(tokens), (place, low), (0, -11), textcoords="offset points", ha="center", fontsize=7.5, color=_GRAY
            )
        left, right = axes.get_xlim()
        margin = 0.06 * (right - left)  # a number there would overlap the next panel
        ticks = round_numbers(10 ** (left + margin), 10 ** (right - margin))
        axes.set_xticks([math.log10(tick) for tick in ticks], [operations(tick) for tick in ticks])
    return figure


def by_kind(analysis: Analysis) -> Figure:
    """Plot a panel for each kind of question, with a row for each configuration."""
    configurations = analysis.configurations[::-1]
    columns = min(3, len(analysis.kinds))
    rows = math.ceil(len(analysis.kinds) / columns)
    height = 0.24 if len(configurations) < 12 else 0.17
    figure = Figure(figsize=(11, 0.5 + rows * (0.55 + height * len(configurations))), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    styles = {id(c): series for series in series_of(analysis) for c in series.members}
    for index, axes in enumerate(grid.flat):
        if index >= len(analysis.kinds):
            axes.set_axis_off()
            continue
        kind = analysis.kinds[index]
        _clean(axes, "x")
        axes.set_title(_plain(kind), fontsize=10, color=_INK, loc="left", weight="bold")
        for row, configuration in enumerate(configurations):
            if kind in configuration.by_kind:
                hollow, estimate = not configuration.training.converged, configuration.by_kind[kind]
                _mark(axes, estimate, styles[id(configuration)], row, hollow=hollow, lying=True)
        axes.set_yticks(range(len(configurations)), [_plain(c.label) for c in configurations], fontsize=7.5)
        axes.set_ylim(-0.7, len(configurations) - 0.3)
    figure.supxlabel(f"Words right, % of {analysis.split}", fontsize=9, color=_INK)
    return figure


def series_of(analysis: Analysis) -> list[Series]:
    """Series in the order of the configurations; each has its own marker if gray series cannot differ in color."""
    groups = defaultdict[str, list[Configuration]](list)
    for configuration in analysis.configurations:
        groups[configuration.series].append(configuration)
    others = [c for c in analysis.configurations if not c.reference]
    varied = len({repr((c.n_fusion, c.values)) for c in others}) > 1
    looks = list(dict.fromkeys(_look(c, varied) for c in sorted(others, key=lambda c: c.tokens == 0)))
    compressors = list(dict.fromkeys(c.compressor for c in sorted(others, key=lambda c: c.tokens == 0)))
    gray = not all(map(_has_interval, analysis.configurations))
    made = []
    for index, (name, members) in enumerate(groups.items()):
        first = members[0]
        color = _INK if first.reference else _COLORS[looks.index(_look(first, varied)) % len(_COLORS)]
        kind = -1 if first.reference else compressors.index(first.compressor)
        line, marker = _LINES[kind % len(_LINES)], _MARKERS[(index if gray else kind) % len(_MARKERS)]
        by_tokens = sorted(members, key=lambda c: c.tokens)
        made.append(Series(name, by_tokens, color, marker, line))
    return made


def _look(configuration: Configuration, varied: bool) -> str:
    """Key of a color: what was varied besides the compressor, or the compressor if nothing else was varied."""
    return repr((configuration.n_fusion, configuration.values)) if varied else configuration.compressor


def _figure(analysis: Analysis, position: Callable[[Configuration], float], x_label: str) -> Figure:
    """Figure with a panel for each group of question kinds on one scale, and a legend below."""
    series = series_of(analysis)
    wide = len(analysis.groups) > 1
    columns = 5 if wide else 4
    height = 4.6 + 0.2 * math.ceil((len(series) + 2) / columns)
    figure = Figure(figsize=(11.0 if wide else 8.4, height), layout="constrained")
    panels = figure.subplots(1, len(analysis.groups), sharey=True, squeeze=False)[0]
    for group, axes in zip(analysis.groups, panels, strict=True):
        _clean(axes, "y")
        axes.set_title(group_head(group, analysis.groups), fontsize=10, color=_INK, loc="left", weight="bold")
        axes.set_xlabel(x_label, fontsize=9, color=_INK)
        _draw(axes, analysis, series, group, position)
    panels[0].set_ylabel(f"Words right, % of {analysis.split}", fontsize=9, color=_INK)
    panels[0].set_ylim(*at_least(_EXTENT, *panels[0].get_ylim()))
    handles = [_handle(one) for one in series]
    scores = [score for c in analysis.configurations for score in c.scores.values()]
    if any(not c.training.converged for c in analysis.configurations):
        handles.append(_sign("hollow: still improving", _GRAY, filled=False))
    if any(score.mean.interval is None for score in scores):
        handles.append(_sign("gray: too few seeds", _LIGHT))
    if any(len(score.by_seed) > 1 for score in scores):
        handles.append(_sign("small dots: seeds", _GRAY, size=3))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False, labelcolor=_INK,
        handlelength=2.6,
    )  # fmt: skip
    return figure


def _handle(series: Series) -> Line2D:
    known = sum(_has_interval(c) for c in series.members)
    line: _Line = series.line if known > 1 else "none"
    color = series.color if known else _LIGHT
    return Line2D([], [], color=color, marker=series.marker, linestyle=line, label=_plain(series.name), markersize=6)


def _sign(text: str, color: str, size: float = 6, filled: bool = True) -> Line2D:
    """Entry of the legend that explains a style."""
    face = color if filled else "white"
    return Line2D(
        [], [], linestyle="none", marker="o", markersize=size, color=color, markerfacecolor=face, label=text
    )  # fmt: skip


def _has_interval(configuration: Configuration) -> bool:
    return any(score.mean.interval is not None for score in configuration.scores.values())


def _clean(axes: Axes, grid: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#d1d5db")
    axes.grid(axis="x" if grid == "x" else "y", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_GRAY, labelsize=8.5, length=0)


def _draw(
    axes: Axes, analysis: Analysis, series: Sequence[Series], group: str, position: Callable[[Configuration], float]
) -> None:
    """Draw all series of a group, and their reference as a horizontal line."""
    drawn = [c for c in analysis.configurations if group in c.scores]
    for mean in (c.scores[group].mean for c in drawn if c.reference):
        if mean.interval is not None:
            axes.axhspan(100 * mean.interval[0], 100 * mean.interval[1], color=_INK, alpha=0.06, linewidth=0)
        axes.axhline(100 * mean.value, color=_INK if mean.interval else _LIGHT, linewidth=0.9, linestyle=(0, (1, 2)))
    places = [position(c) for c in drawn]
    extent = max(places) - min(places) or 1.0
    taken: Counter[float] = Counter()
    for one in series:
        members = [c for c in one.members if group in c.scores]
        x = []
        for place in map(position, members):  # bars at one place are drawn side by side
            same = [round(other, 2) for other in places].count(round(place, 2))
            x.append(place + min(0.014, 0.1 / same) * extent * (taken[round(place, 2)] - (same - 1) / 2))
            taken[round(place, 2)] += 1
        known = [(place, c) for place, c in zip(x, members, strict=True) if _has_interval(c)]
        y = [100 * c.scores[group].mean.value for _, c in known]
        axes.plot([place for place, _ in known], y, color=one.color, linestyle=one.line, linewidth=1.5)
        for place, configuration in zip(x, members, strict=True):
            score = configuration.scores[group]
            _mark(axes, score.mean, one, place, hollow=not configuration.training.converged_on(group))
            if len(score.by_seed) > 1:
                seeds = [100 * value for value in score.by_seed.values()]
                color = one.color if score.mean.interval else _LIGHT
                beside = [place + 0.016 * extent] * len(seeds)
                axes.scatter(beside, seeds, s=7, color=color, alpha=0.7, linewidths=0, zorder=3)
    axes.set_xlim(min(places) - 0.07 * extent, max(places) + 0.07 * extent)


def _mark(axes: Axes, estimate: Estimate, series: Series, place: float, *, hollow: bool, lying: bool = False) -> None:
    """Draw a point at x = `place`, or at y = `place` if `lying`, with its bar; hollow if it had not converged."""
    value, color = 100 * estimate.value, series.color if estimate.interval else _LIGHT
    bar = None
    if estimate.interval is not None:
        low, high = estimate.interval
        bar = [[value - 100 * low], [100 * high - value]]
    axes.errorbar(
        [value] if lying else [place], [place] if lying else [value],
        yerr=None if lying else bar, xerr=bar if lying else None,
        color=color, elinewidth=1.1, capsize=2.2, linestyle="none", marker=series.marker,
        markersize=4.5 if lying else 6, markeredgewidth=1.3,
        markerfacecolor="white" if hollow else color,
    )  # fmt: skip


def _lowest(configuration: Configuration, group: str) -> float:
    """Lower end of a point's bar, or the point itself if it has no bar."""
    mean = configuration.scores[group].mean
    return 100 * (mean.value if mean.interval is None else mean.interval[0])


def at_least(extent: float, low: float, high: float) -> tuple[float, float]:
    """Limits moved apart to at least `extent` percent, not far above 100, so that noise does not fill a plot."""
    lacking = max(0.0, extent - (high - low))
    top = max(high, min(high + lacking / 2, 101.0))
    return min(low, top - max(extent, high - low)), top


def round_numbers(low: float, high: float) -> list[float]:
    """Numbers 1, 2, 5, 10, 20, ... within limits, or more finely spaced ones if those are fewer than two."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), range(1, 10), [digit / 10 for digit in range(10, 100)]):
        found = [digit * 10.0**exponent for exponent in exponents for digit in digits]
        inside = [number for number in found if low <= number <= high]
        if len(inside) > 1:
            return inside
    return [low]


def _token_position(tokens: int) -> float:
    """Position on the x-axis, where 0 tokens are one unit before 1 token."""
    return math.log2(tokens) if tokens else -1.0


def _plain(text: str) -> str:
    """Text shortened for a label, with the $ escaped that begins a formula in matplotlib."""
    return (text if len(text) <= 48 else f"{text[:45]}...").replace("$", r"\$")
