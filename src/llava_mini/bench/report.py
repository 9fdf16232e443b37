"""Results of the data path benchmark as a table and as JSON. Machine data is limited to what explains the numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llava_mini.bench.data_path import (
    LARGE_SET,
    OWN,
    OWN_SMALL,
    USUAL,
    USUAL_OUR_LABELS,
    USUAL_SMALL,
    WDS,
    WDS_SHUFFLED,
    WORKERS,
    Findings,
)
from llava_mini.bench.stopwatch import Spread
from llava_mini.files import write_json, write_text

LIBRARIES = ("torch", "transformers", "tokenizers", "pillow", "simplejpeg", "webdataset", "numpy")
ORDER = (USUAL, USUAL_OUR_LABELS, USUAL_SMALL, WDS_SHUFFLED, WDS, OWN, OWN_SMALL)


@dataclass(frozen=True)
class Target:
    """A requirement and its measured value. `comparison` says how `value` compares with `limit`."""

    text: str
    comparison: str
    limit: float
    value: float
    shown: str

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.comparison == "at least" else self.value < self.limit


def targets(found: Findings) -> list[Target]:
    """Return the requirements in their order, with the measured values."""
    seconds = [each.seconds for each in found.openings]
    private = [each.private for each in found.openings]
    builds = Spread.of([1000 / each.cpu for each in found.builds])
    lines = [
        _ratio("CPU of the usual loader over ours, 640x480 JPEGs", 3, found.ratio(USUAL, OWN)),
        _ratio("the same, ours from 336-pixel shards", 6, found.ratio(USUAL, OWN_SMALL)),
        _ratio(f"CPU of {WDS_SHUFFLED}, over ours", 1, found.ratio(WDS_SHUFFLED, OWN)),
        _ratio(f"CPU of {WDS}, over ours", 1, found.ratio(WDS, OWN)),
    ]
    for other in (WDS_SHUFFLED, WDS):
        most, ours = found.loading(other), found.loading(OWN)
        lines.append(Target(f"memory of our loader, MiB; {other}: {most:.0f}", "below", most, ours, f"{ours:.0f}"))
    lines += [
        Target(f"seconds to open {LARGE_SET:,} samples", "below", 1, max(seconds), Spread.of(seconds).shown(2)),
        Target("private MiB of a worker for it", "below", 50, max(private), Spread.of(private).shown(1)),
        Target("samples built and verified a CPU-second", "at least", 400, builds.median, builds.shown(0)),
    ]
    return lines


def _ratio(text: str, limit: float, found: Spread) -> Target:
    return Target(text, "at least", limit, found.median, found.shown(2))


def write_report(found: Findings, folder: Path, about: dict[str, Any]) -> None:
    """Write table.md and results.json."""
    folder.mkdir(parents=True, exist_ok=True)
    summary = [{**asdict(target), "met": target.met} for target in targets(found)]
    write_json(folder / "results.json", {"about": about, "targets": summary, "findings": asdict(found)})
    write_text(folder / "table.md", table(found, about))


def table(found: Findings, about: dict[str, Any]) -> str:
    """Return all results as Markdown."""
    parts = (_conditions(found, about), _targets(found), _loaders(found), _about_loaders(found), _about_build(found))
    return "\n\n".join(parts) + "\n"


def _conditions(found: Findings, about: dict[str, Any]) -> str:
    commit = about["commit"]
    libraries = ", ".join(f"{name} {about[name]}" for name in ("python", *LIBRARIES))
    size = found.builds[0].picture_bytes / 1000
    return (
        f"Commit `{commit[:12]}{commit[40:]}`; {about['cores']} cores of {about['cpu']}; {libraries}.\n"
        f"{found.samples} samples with JPEGs of {size:.0f} KB on average, read from memory; one thread. Medians of"
        f" {len(found.builds)} rounds (smallest to largest); ratios are taken within a round."
    )


def _targets(found: Findings) -> str:
    rows = [
        f"| {target.text} | {target.comparison} {target.limit:.4g} | {target.shown} | {'yes' if target.met else 'no'} |"
        for target in targets(found)
    ]
    return "\n".join(["| what | required | measured | met |", "|---|---|---|---|", *rows])


def _loaders(found: Findings) -> str:
    rows = []
    for name in ORDER:
        cpu = Spread.of([cost.cpu for cost in found.costs[name]])
        wall = Spread.of([cost.wall for cost in found.costs[name]])
        rows.append(f"| {name} | {cpu.shown(2)} | {wall.shown(2)} | {found.loading(name):.0f} |")
    head = ["| loader | CPU-ms a sample | wall-ms a sample | MiB while loading |", "|---|---|---|---|"]
    return "\n".join([*head, *rows])


def _about_loaders(found: Findings) -> str:
    records = found.record_bytes
    (largest, mean), (largest_small, mean_small) = found.differences[OWN], found.differences[OWN_SMALL]
    return (
        "MiB are private memory beyond what the process had before, at their most. The usual loader's list takes"
        f" {records / 1000:.1f} KB a record, so {records * LARGE_SET / 1e9:.1f} GB for {LARGE_SET:,} records in every"
        f" process; our index is mapped, and {WORKERS} workers that opened it at the same time shared it.\n"
        f"Our pixels differ from the usual loader's by {largest:.1f}/255 at most and {mean:.2f}/255 on average; those"
        f" of 336-pixel shards, compressed a second time, by {largest_small:.0f}/255 and {mean_small:.1f}/255."
        " Ours are bytes that the device normalizes, the usual loader's are normalized floats."
    )


def _about_build(found: Findings) -> str:
    cpu = Spread.of([each.cpu for each in found.builds])
    verify = Spread.of(found.verify_ms)
    rate = found.builds[0].picture_bytes / 1000 / cpu.median
    return (
        f"`data build` takes {cpu.shown(2)} CPU-ms a sample, its start included. Verifying the picture is"
        f" {verify.shown(2)} of that, {100 * verify.median / cpu.median:.0f} %; the rest is reading, packing, hashing"
        f" and writing. A core then reads {rate:.0f} MB/s and writes as much: a disk that gives less is the limit, else"
        " the decoder."
    )
