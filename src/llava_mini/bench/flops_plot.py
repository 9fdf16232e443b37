"""Plot of the FLOPs benchmark: the share of each part for an image, an HD image and a video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llava_mini.bench.bars import BLUE, INK, PALE, style_bars
from llava_mini.bench.flop_rows import BASE, MINI, TERA, Row, find
from llava_mini.bench.flops import PARTS

_COLORS = (BLUE, "#CC79A7", "#F0E442", "#009E73", PALE)  # Okabe and Ito's, gray for the language model
_ASKED = {"image": ("standard", 1), "HD image": ("hd", 1), "video of 16 frames": ("standard", 16)}
_BARS: dict[str, tuple[str, dict[str, Any]]] = {
    "ours, later question": (MINI, {"order": "exact", "cached": True}),
    "LLaVA-Mini, ours": (MINI, {"order": "exact"}),
    "LLaVA-Mini, release's order": (MINI, {}),
    "LLaVA-v1.5": (BASE, {}),
}  # from bottom to top


def draw(found: list[Row], path: Path) -> None:
    """Write the plot as a PNG."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    for axes, (title, (resolution, frames)) in zip(figure.subplots(1, 3, sharey=True), _ASKED.items(), strict=True):
        chosen = [find(found, model, resolution, frames, **which) for model, which in _BARS.values()]
        _bars(axes, f"{title}, TFLOP", chosen)
    figure.axes[0].set_yticks(range(len(_BARS)), list(_BARS), fontsize=9.5, color=INK)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, [label.replace("_", " ") for label in labels], loc="outside lower right", ncols=len(PARTS),
        frameon=False, fontsize=8.5,
    )  # fmt: skip
    figure.savefig(path, dpi=150, metadata={"Software": None})


def _bars(axes: Axes, title: str, chosen: list[Row]) -> None:
    left = [0.0] * len(chosen)
    for part, color in zip(PARTS, _COLORS, strict=True):
        widths = [row["parts"][part] / TERA for row in chosen]
        axes.barh(range(len(chosen)), widths, left=left, color=color, height=0.66, label=part)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for number, total in enumerate(left):
        axes.annotate(
            f"{total:.2f}", (total, number), (5, 0), textcoords="offset points", va="center", fontsize=9, color=INK
        )
    axes.set_title(title, loc="left", fontsize=10.5, weight="bold", color=INK)
    axes.set_xlim(0, 1.2 * max(left))
    style_bars(axes)
