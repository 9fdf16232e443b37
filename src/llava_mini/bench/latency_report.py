"""Results of the latency benchmark as a table, as JSON, as MLflow metrics and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llava_mini.bench.bars import BLUE, GRAY, INK, PALE, style_bars
from llava_mini.bench.baselines import OURS, RELEASED, TRANSFORMERS, WAYS
from llava_mini.bench.latency import BARS, FURTHER, IMAGE, LATER_IMAGE, LATER_VIDEO, UNPACKED, VIDEO, Bar, Findings
from llava_mini.bench.record import metric_name
from llava_mini.bench.stopwatch import Timing

_SHOWN = (UNPACKED[TRANSFORMERS], *WAYS[:-1], UNPACKED[OURS], OURS)
_COLORS = {way: BLUE if way == OURS else PALE for way in _SHOWN}


def met(found: Findings, bar: Bar) -> bool:
    """Whether the ratio of wall times reaches the required limit."""
    return found.ratio(bar) >= bar.limit


def figures(found: Findings) -> dict[str, Any]:
    """Return all results and the required ratios, ready for JSON."""
    bars = [
        {"text": bar.text, "at_least": bar.limit, "wall": found.ratio(bar), "cpu": found.ratio(bar, "cpu"),
         "met": met(found, bar)}
        for bar in BARS
    ]  # fmt: skip
    timings = [asdict(each) | {"peak_share": each.share(found.peak)} for each in found.timings]
    return {
        "rounds": found.rounds,
        "setting": asdict(found.setting),
        "bars": bars,
        "peak_gflops": {of: _gflops(found.peak, of) for of in ("wall", "cpu")},
        "timings": timings,
    }


def metrics(found: Findings) -> dict[str, float]:
    """Return the MLflow metrics: ratios, and median milliseconds."""
    ratios = {f"ratio.{metric_name(bar.text)}": found.ratio(bar) for bar in BARS}
    return ratios | {
        f"{metric_name(each.task)}.{metric_name(each.way)}.batch_{each.batch}": 1000 * each.wall.median
        for each in found.timings
    }


def table(found: Findings) -> str:
    """Return all results as Markdown."""
    setting = found.setting
    about = (
        f"Seconds are medians of {found.rounds} interleaved rounds (least to most); float32; {setting.text_tokens} text"
        f" tokens; a video has {setting.frames} frames. Linear layers are prepacked for all ways but those that say"
        " otherwise, as all ways have the same ones. CPU-seconds are those of all threads. The matmul peak, measured"
        f" in the same rounds, is {_gflops(found.peak, 'wall'):.0f} GFLOP/s ({_gflops(found.peak, 'cpu'):.0f} a"
        " CPU-second); the last columns say how much of it a way reaches with the FLOPs that it does."
    )
    return "\n\n".join((about, _bars_table(found), _timings(found))) + "\n"


def _bars_table(found: Findings) -> str:
    lines = ["| how many times as fast | required | wall | CPU | met |", "|---|---|---|---|---|"]
    for bar in BARS:
        wall, cpu = (f"{found.ratio(bar, of):.2f}" for of in ("wall", "cpu"))
        lines.append(f"| {bar.text} | {bar.limit:g} | {wall} | {cpu} | {'yes' if met(found, bar) else 'no'} |")
    return "\n".join(lines)


def _timings(found: Findings) -> str:
    head = ["task", "way", "batch", "seconds", "CPU-seconds", "a second", "GFLOP", "of the peak", "a CPU-second"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for each in found.timings:
        cells = [each.task, each.way, str(each.batch), each.wall.shown(3), each.cpu.shown(3), _rate(each)]
        if each.flops:
            shares = (f"{100 * each.share(found.peak, of):.0f} %" for of in ("wall", "cpu"))
            cells += [f"{each.flops / 1e9:.1f}", *shares]
        else:
            cells += [""] * 3
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _rate(each: Timing) -> str:
    unit = "frames" if each.frames > 1 else "tokens" if each.task == FURTHER else "images"
    return f"{each.batch * each.frames / each.wall.median:.2f} {unit}"


def _gflops(each: Timing, of: str) -> float:
    return float(each.flops / getattr(each, of).median / 1e9)


def draw(found: Findings, path: Path) -> None:
    """Write the plot as a PNG."""
    figure = Figure(figsize=(13, 3.4), layout="constrained")
    image, video, further = figure.subplots(1, 3, width_ratios=[3, 2, 2])
    _bars(image, "Image: seconds to the first token", found, [(way, IMAGE) for way in _SHOWN] + [(OURS, LATER_IMAGE)])
    _bars(video, "Video", found, [(RELEASED, VIDEO), (OURS, VIDEO), (OURS, LATER_VIDEO)])
    _bars(further, "Further token", found, [(way, FURTHER) for way in _SHOWN])
    figure.supxlabel("Medians, and the range of the rounds.", fontsize=8.5, color=GRAY, x=0.99, ha="right")
    figure.savefig(path, dpi=150, metadata={"Software": None})


def _bars(axes: Axes, title: str, found: Findings, shown: Sequence[tuple[str, str]]) -> None:
    timings = [found.find(*which) for which in shown][::-1]  # bars are drawn from bottom to top
    names = [f"{each.way}{', later question' if 'later' in each.task else ''}" for each in timings]
    medians = [each.wall.median for each in timings]
    errors = [
        [each.wall.median - each.wall.least for each in timings],
        [each.wall.most - each.wall.median for each in timings],
    ]
    axes.barh(names, medians, xerr=errors, color=[_COLORS[each.way] for each in timings], height=0.66, ecolor=INK)
    for row, each in enumerate(timings):
        axes.annotate(
            f"{each.wall.median:.3g}", (each.wall.most, row), (5, 0), textcoords="offset points", va="center",
            fontsize=8.5, color=INK,
        )  # fmt: skip
    axes.set_title(title, loc="left", fontsize=10, weight="bold", color=INK)
    axes.set_xlim(0, 1.25 * max(each.wall.most for each in timings))
    style_bars(axes)
    axes.tick_params(axis="y", labelsize=8.5, labelcolor=INK)
