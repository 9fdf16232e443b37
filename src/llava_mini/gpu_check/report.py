"""The report of a check: results.json for machines, table.md for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llava_mini.bench.on_gpu import head_of_report
from llava_mini.files import write_json, write_text

_HEAD = (
    "| trial | limit, GiB | peak, GiB | planned, GiB | error of the plan | samples/s |",
    "|---|---|---|---|---|---|",
)


def write_report(out: Path, device: str, results: list[dict[str, Any]]) -> None:
    """Write results.json and table.md, each atomically.

    Args:
        out: Folder of both files.
        device: Description of the card.
        results: Result of every trial: name, limit_gib, status, and what was measured and planned.
    """
    about, line = head_of_report(device, ("torch", "transformers", "peft", "bitsandbytes"))
    write_json(out / "results.json", {**about, "trials": results})
    lines = [line, "", *_HEAD, *map(_row, results)]
    write_text(out / "table.md", "\n".join(lines) + "\n")


def _row(result: dict[str, Any]) -> str:
    limit = "all" if result["limit_gib"] is None else f"{result['limit_gib']:g}"
    plan, peak = result.get("planned_bytes"), result.get("peak_bytes")
    cells = [result["name"], limit, _gib(peak) if peak else result["status"], _gib(plan)]
    cells.append(f"{100 * (plan / peak - 1):+.1f} %" if plan and peak else "")
    cells.append(f"{result['samples_per_s']:.2f}" if peak else "")
    return f"| {' | '.join(cells)} |"


def _gib(count: int | None) -> str:
    return "" if count is None else f"{count / 2**30:.2f}"
