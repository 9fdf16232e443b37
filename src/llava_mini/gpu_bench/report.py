"""The report of the GPU bench: gpu.json for machines, gpu.md for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llava_mini.bench.on_gpu import head_of_report
from llava_mini.files import write_json, write_text

_HEAD = ("task", "way", "batch", "milliseconds", "a second", "TFLOP", "of the matmul peak", "status")


def write_report(out: Path, device: str, rows: list[dict[str, Any]]) -> str:
    """Write gpu.json and gpu.md, each atomically.

    Args:
        out: Folder of both files; made if it does not exist.
        device: Description of the card.
        rows: One row for everything that was tried: task, status, and what was measured.

    Returns:
        The text of gpu.md.
    """
    out.mkdir(parents=True, exist_ok=True)
    peaks = [row["peak_tflops"] for row in rows if "peak_tflops" in row]
    peak = f"; matmul peak {max(peaks):.1f} TFLOP/s" if peaks else ""
    about, line = head_of_report(device, ("torch", "transformers"), peak)
    write_json(out / "gpu.json", {**about, "rows": rows})
    lines = [line, "", f"| {' | '.join(_HEAD)} |", "|---" * len(_HEAD) + "|"]
    lines += [_row(row) for row in rows if row["task"] != "long video"]
    lines += [_long(row) for row in rows if row["task"] == "long video"]
    text = "\n".join(lines) + "\n"
    write_text(out / "gpu.md", text)
    return text


def _row(row: dict[str, Any]) -> str:
    wall = row.get("wall", {}).get("median")
    cells = [row["task"], row.get("way", ""), str(row.get("batch", ""))]
    cells += [f"{1000 * wall:.2f}", _rate(row, wall)] if wall else ["", ""]
    cells += [f"{row['flops'] / 1e12:.2f}", f"{100 * row['peak_share']:.0f} %"] if "peak_share" in row else ["", ""]
    return f"| {' | '.join([*cells, row['status']])} |"


def _rate(row: dict[str, Any], wall: float) -> str:
    unit = "frames" if row.get("frames", 1) > 1 else "tokens" if "token" in row["task"] else "images"
    return f"{row.get('batch', 1) * row.get('frames', 1) / wall:.1f} {unit}"


def _long(row: dict[str, Any]) -> str:
    """Return the row of the long video as sentences, which come after the table."""
    if "frames_per_s" not in row:
        return f"\nLong video: {row['status']}."
    memory = f"; at most {row['peak_gib']:.2f} of {row['limit_gib']:g} GiB on the card" if "peak_gib" in row else ""
    return (
        f"\nLong video ({row['status']}): {row['frames']:,} frames, {row['frames_per_s']:.1f} frames/s; a question"
        f" {row['question_s']:.1f} s, a later one {row['later_question_s']:.1f} s{memory}; features in 8 bits in host"
        f" memory, {row['host_gib']:.2f} GiB."
    )
