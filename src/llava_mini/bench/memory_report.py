"""Results of `llava-mini bench memory` as a table, as JSON, as MLflow metrics and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from llava_mini.bench.memory import VisualState, table
from llava_mini.bench.peak_memory import LLAVA, OURS, OURS_KV, Point
from llava_mini.bench.record import circumstances_text, write
from llava_mini.files import atomic_path
from llava_mini.inference.session_plan import SessionPlan

_COLORS = {LLAVA: "#b6bcc6", OURS_KV: "#56b4e9", OURS: "#0072b2"}  # the blues are Okabe and Ito's


def write_memory(
    folder: Path, states: list[VisualState], plans: list[SessionPlan], points: Sequence[Point], about: dict[str, Any]
) -> str:
    """Write memory.md, memory.json and memory.png.

    Returns:
        The text of memory.md.
    """
    said = "The first two tables are arithmetic over the published shapes, the last one is measured."
    text = "\n\n".join((f"{circumstances_text(about)} {said}", table(states, plans), _measured(points))) + "\n"
    found = {
        "about": about,
        "visual_state": [asdict(state) for state in states],
        "sessions": [asdict(plan) | {"total_bytes": plan.total_bytes, "fits": plan.fits} for plan in plans],
        "measured": [asdict(point) for point in points],
    }
    write(folder, "memory", found, text)
    with atomic_path(folder / "memory.png") as path:
        _draw(points, path)
    return text


def _measured(points: Sequence[Point]) -> str:
    about = (
        "Growth of a process' memory while it looks at frames as a stream and answers a question; float32, a small"
        " model with random weights (language model 128 wide, 8 layers), 576 patches a frame."
    )
    lines = [about, "", "| model | frames | peak, MiB | of it the language model's cache, MiB |", "|---|---|---|---|"]
    lines += [
        f"| {point.way} | {point.frames} | {point.peak_bytes / 2**20:.1f} | {point.cache_bytes / 2**20:.1f} |"
        for point in points
    ]
    return "\n".join(lines)


def _draw(points: Sequence[Point], path: Path) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for way, color in _COLORS.items():
        chosen = [point for point in points if point.way == way]
        axes.plot([p.frames for p in chosen], [p.peak_bytes / 2**20 for p in chosen], "o-", color=color, label=way)
    axes.set(xscale="log", yscale="log", xlabel="frames", ylabel="peak memory beyond the model's, MiB")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.legend(frameon=False)
    figure.savefig(path, format="png", dpi=150, metadata={"Software": None})


def metrics(plans: Sequence[SessionPlan], points: Sequence[Point]) -> dict[str, Any]:
    """Return the MLflow metrics: frames that fit, bytes of sessions, measured peaks."""
    sessions = {f"{plan.model} {plan.weights} {plan.bits or 16} bits".translate(_PLAIN): plan for plan in plans}
    return {
        "largest_frames": {name: plan.largest for name, plan in sessions.items()},
        "session_bytes": {name: plan.total_bytes for name, plan in sessions.items()},
        "peak_bytes": {f"{point.way.translate(_PLAIN)}_{point.frames}_frames": point.peak_bytes for point in points},
    }


_PLAIN = str.maketrans({" ": "_", ",": "", "'": ""})  # characters that MLflow allows in names
