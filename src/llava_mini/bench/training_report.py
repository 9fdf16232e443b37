"""Results of the training step benchmark as a table, as JSON, as MLflow metrics and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llava_mini.bench.bars import BLUE, GRAY, INK, PALE, style_bars
from llava_mini.bench.record import metric_name
from llava_mini.bench.training import Findings, StepTimes
from llava_mini.bench.training_steps import BACKWARD, DATA, FORWARD, OPTIMIZER, PARTS

_COLORS = {DATA: PALE, FORWARD: "#56B4E9", BACKWARD: BLUE, OPTIMIZER: GRAY}  # blues are Okabe and Ito's
_MS = 1000


def figures(found: Sequence[Findings]) -> list[dict[str, Any]]:
    """Return all results: medians with their range, and the seconds of each round."""
    return [
        {"shape": each.shape, "rounds": each.rounds, "ways": [_way_figures(each, way) for way in each.ways]}
        for each in found
    ]


def _way_figures(found: Findings, way: StepTimes) -> dict[str, Any]:
    return {
        "way": way.way,
        "samples": way.samples,
        "tokens": way.tokens,
        "samples_per_cpu_second": asdict(way.rate()),
        "times_transformers": {of: asdict(found.ratio(way.way, of)) for of in ("cpu", "wall")},
        "seconds": {of: asdict(way.step(of)) for of in ("cpu", "wall")},
        "parts": {name: seconds._asdict() for name, seconds in way.parts.items()},
    }


def metrics(found: Sequence[Findings]) -> dict[str, float]:
    """Return the MLflow metrics: medians of the samples per CPU-second and of the ratio to transformers' step."""
    named = [(metric_name(f"{each.shape}.{way.way}"), each, way) for each in found for way in each.ways]
    rates = {f"samples_per_cpu_second.{name}": way.rate().median for name, _, way in named}
    return rates | {f"times_transformers.{name}": each.ratio(way.way).median for name, each, way in named}


def table(found: Sequence[Findings]) -> str:
    """Return all results as Markdown, one table per shape."""
    about = (
        "A step makes a batch from shards, runs the model forward and backward, clips the gradients and lets AdamW"
        " change the weights; float32. Figures are medians over interleaved rounds (least to most); ratios are of"
        " CPU-seconds and taken within a round. The parts are CPU-milliseconds and their share of the step; tokens are"
        " those of the language model's sequences with padding."
    )
    return "\n\n".join([about, *map(_shape_table, found)]) + "\n"


def _shape_table(found: Findings) -> str:
    head = ["way", "tokens", "samples a CPU-second", "times transformers'", "CPU-ms", "wall-ms", *PARTS]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for way in found.ways:
        digits = 2 if way.rate().median < 10 else 1
        cells = [way.way, str(way.tokens), way.rate().shown(digits), found.ratio(way.way).shown(2)]
        cells += [f"{_MS * way.step(of).median:.0f}" for of in ("cpu", "wall")]
        cells += [f"{_MS * way.part(part).median:.1f} ({_share(way, part):.0f} %)" for part in PARTS]
        lines.append(f"| {' | '.join(cells)} |")
    samples = found.ways[0].samples
    return f"**{found.shape}**, {samples} samples a step, {found.rounds} rounds\n\n" + "\n".join(lines)


def _share(way: StepTimes, part: str) -> float:
    """Return a part's percentage of the CPU-seconds of all rounds, so that the percentages add up to 100."""
    return 100 * sum(way.parts[part].cpu) / sum(way.steps())


def draw(found: Sequence[Findings], path: Path) -> None:
    """Write the plot as a PNG."""
    figure = Figure(figsize=(13, 3.2), layout="constrained")
    axes = figure.subplots(1, len(found), squeeze=False)[0]
    for one, each in zip(axes, found, strict=True):
        _bars(one, each)
    axes[-1].legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="lower right")
    figure.supxlabel("Medians of the parts.", fontsize=8.5, color=GRAY, x=0.99, ha="right")
    figure.savefig(path, dpi=150, metadata={"Software": None})


def _bars(axes: Axes, found: Findings) -> None:
    ways = found.ways[::-1]  # bars are drawn from bottom to top
    names = [way.way for way in ways]
    lefts = [0.0] * len(ways)
    for part in PARTS:
        widths = [_MS * way.part(part).median / way.samples for way in ways]
        axes.barh(names, widths, left=lefts, color=_COLORS[part], height=0.66, label=part)
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    for row, (way, right) in enumerate(zip(ways, lefts, strict=True)):
        axes.annotate(
            f"{right:.3g}  ({found.ratio(way.way).median:.2f}x)", (right, row), (5, 0), textcoords="offset points",
            va="center", fontsize=8.5, color=INK,
        )  # fmt: skip
    axes.set_title(f"{found.shape}: CPU-ms a sample", loc="left", fontsize=10, weight="bold", color=INK)
    axes.set_xlim(0, 1.3 * max(lefts))
    style_bars(axes)
    axes.tick_params(axis="y", labelsize=8.5, labelcolor=INK)
