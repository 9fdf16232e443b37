"""`llava-mini compare`: reads a sweep's folder and writes its report there, for people and for programs.

The files are report.html with three PNG plots, results.csv and results.json. Tables, the first sentences and the path
are printed.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_mini.files import atomic_path, write_text
from llava_mini.sweep.analysis import Analysis, analyze
from llava_mini.sweep.configurations import Configuration
from llava_mini.sweep.findings import headline
from llava_mini.sweep.folder import write_json
from llava_mini.sweep.html import page
from llava_mini.sweep.plots import draw_all
from llava_mini.sweep.progress import Say, print_now
from llava_mini.sweep.statistics import FEWEST_SEEDS, Difference
from llava_mini.sweep.text import duration, group_head, operations, percent, percent_range, points, points_range


def compare(sweep_dir: Path, say: Say = print_now) -> Path:
    """Write the plots, results.csv, results.json and report.html; print the tables and the report's path; return it.

    Raises:
        UserError: if the folder is not a sweep's folder.
    """
    analysis = analyze(sweep_dir)
    rows = [measured.row() for measured in analysis.runs]
    write_json(sweep_dir / "results.json", rows)
    _write_csv(sweep_dir / "results.csv", [_flat(row, analysis) for row in rows])
    plots = draw_all(analysis, sweep_dir) if analysis.configurations else {}
    report = sweep_dir / "report.html"
    write_text(report, page(sweep_dir.resolve().name, analysis, plots))
    tables = [line for group in analysis.groups for line in [*_table(analysis, group), ""]]
    notes = [note for note in [*_how_to_read(analysis), *_not_finished(analysis), analysis.not_compared()] if note]
    for line in [*tables, *notes, "", *headline(analysis), "", str(report)]:
        say(line)
    return report


def _table(analysis: Analysis, group: str) -> list[str]:
    """Lines of an aligned table with the configurations' word accuracy in one group of question kinds."""
    title = f"{group_head(group, analysis.groups)}: words right, % of {analysis.split}"
    heads = ("configuration", "tokens", "seeds", "right", "95 %", "to uncompressed", "95 %", "prefill", "time", "")
    rows = [_cells(c, group) for c in analysis.configurations if group in c.scores]
    columns = [column for column in zip(heads, *rows, strict=True) if any(column[1:])]
    left = ("configuration", "95 %", "")
    aligned = []
    for head, *cells in columns:
        width = max(map(len, [head, *cells]))
        aligned.append([cell.ljust(width) if head in left else cell.rjust(width) for cell in (head, *cells)])
    return [title, *("  ".join(row).rstrip() for row in zip(*aligned, strict=True))]


def _cells(configuration: Configuration, group: str) -> tuple[str, ...]:
    score = configuration.scores[group]
    value, interval = _difference(score.difference)
    return (
        configuration.label,
        str(configuration.tokens),
        f"{len(configuration.columns)}/{len(configuration.wanted)}",
        percent(score.mean.value),
        percent_range(score.mean),
        "reference" if configuration.reference else value,
        interval,
        operations(configuration.prefill_flops),
        duration(configuration.seconds),
        configuration.training.mark(group),
    )


def _difference(difference: Difference | None) -> tuple[str, str]:
    """Value and interval as text; the value is in brackets if there are too few seeds for an interval, * if clear."""
    if difference is None:
        return "", ""
    if difference.interval is None:
        return f"({points(difference.value)})", ""
    return f"{points(difference.value)}{'*' if difference.clear else ' '}", points_range(difference)


def _how_to_read(analysis: Analysis) -> list[str]:
    """Notes on what the signs in the tables mean, for the signs that occur."""
    counts = [len([d for d in analysis.to_reference(group) if d.p is not None]) for group in analysis.groups]
    notes = []
    if any(counts):
        numbers = " and ".join(
            f"{count} comparison{'' if count == 1 else 's'}" for count in dict.fromkeys(filter(None, counts))
        )
        notes.append(
            f"*: a clear difference, after Holm's correction for the {numbers} of a table. "
            "Intervals are 95 %, over seeds and scenes, each by itself (not corrected)."
        )
    if any(difference.interval is None for difference in analysis.to_reference()):
        notes.append(f"(...): fewer than {FEWEST_SEEDS} common seeds, which show no difference.")
    return notes


def _not_finished(analysis: Analysis) -> list[str]:
    failed = [f"failed: {m.folder.name}: {m.what_failed}" for m in analysis.of_state("failed")]
    return [*failed, *(f"not finished: {m.folder.name}" for m in analysis.of_state("interrupted"))]


def _flat(row: Mapping[str, Any], analysis: Analysis) -> dict[str, Any]:
    """Row whose columns are numbers and texts: `word_accuracy.dense`, `nll_by_kind.color`, the same for every run."""
    flat = {}
    for key, value in row.items():
        if key in ("word_accuracy", "nll"):
            names = analysis.groups
        elif key.endswith("_by_kind"):
            names = analysis.kinds
        else:
            flat[key] = value
            continue
        flat |= {f"{key}.{name}": None if value is None else value.get(name) for name in names}
    return flat


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
