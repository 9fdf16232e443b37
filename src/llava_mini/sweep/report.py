"""`llava-mini compare`: reads a sweep's folder and leaves its report there, for people and for programs.

report.html with three PNG plots, results.csv and results.json; the table and the path are printed.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_mini.files import atomic_path, write_text
from llava_mini.sweep.analysis import Analysis, analyse
from llava_mini.sweep.configurations import Configuration
from llava_mini.sweep.findings import headline
from llava_mini.sweep.folder import write_json
from llava_mini.sweep.html import page
from llava_mini.sweep.plots import draw_all
from llava_mini.sweep.progress import Say, print_now
from llava_mini.sweep.text import duration, operations, percent, percent_range, points, points_range


def compare(sweep_dir: Path, say: Say = print_now) -> Path:
    """Writes report.html, the plots, results.csv and results.json; says the table and last the report's path.

    Args:
        sweep_dir: the sweep's folder; one that is still running may be given too.
        say: takes each line.

    Returns:
        The report.

    Raises:
        UserError: when the folder is not of a sweep.
    """
    analysis = analyse(sweep_dir)
    rows = [measured.row() for measured in analysis.runs]
    write_json(sweep_dir / "results.json", rows)
    _write_csv(sweep_dir / "results.csv", rows)
    pictures = draw_all(analysis, sweep_dir) if analysis.configurations else {}
    report = sweep_dir / "report.html"
    write_text(report, page(sweep_dir.resolve().name, analysis, pictures))
    notes = [note for note in [*_not_finished(analysis), analysis.not_compared()] if note]
    for line in [*_table(analysis), *notes, "", *headline(analysis), "", str(report)]:
        say(line)
    return report


def _table(analysis: Analysis) -> list[str]:
    """The configurations, aligned."""
    if not analysis.configurations:
        return []
    heads = ("configuration", "tokens", "seeds", "accuracy %", "95 %", "to uncompressed", "95 %", "prefill", "time")
    rows = [heads, *(_cells(configuration) for configuration in analysis.configurations)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    left = {0, 4, 6}
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _cells(configuration: Configuration) -> tuple[str, ...]:
    difference = configuration.difference
    return (
        configuration.label,
        str(configuration.tokens),
        f"{len(configuration.columns)}/{len(configuration.wanted)}",
        percent(configuration.accuracy.value),
        percent_range(configuration.accuracy),
        "" if difference is None else points(difference.value),
        "reference" if configuration.reference else "" if difference is None else points_range(difference),
        operations(configuration.prefill_flops),
        duration(configuration.seconds),
    )


def _not_finished(analysis: Analysis) -> list[str]:
    failed = [f"failed: {m.folder.name}: {m.outcome.error}" for m in analysis.of_state("failed")]
    return [*failed, *(f"not finished: {m.folder.name}" for m in analysis.of_state("interrupted"))]


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
