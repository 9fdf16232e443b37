"""Study of the data path: trials in interleaved rounds, with ratios taken within each round.

A round runs every loader once, so other load on the machine affects all of them alike. The report gives medians over
the rounds, with the smallest and the largest value.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llava_mini.bench.large_set import Opening, make_large_set, open_large_set
from llava_mini.bench.loaders import (
    SHUFFLE_BUFFER,
    Loader,
    llava_style,
    llava_with_our_labels,
    own,
    pixel_difference,
    plain_webdataset,
)
from llava_mini.bench.made_data import MadeData, make_data
from llava_mini.bench.processes import fresh
from llava_mini.bench.report import Report, markdown
from llava_mini.bench.timing import Spread
from llava_mini.bench.trials import Build, Cost, Memory, build, bytes_of_records, cost, memory, verification
from llava_mini.units import MIB, size_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("llava_mini")

OWN, OWN_SMALL = "ours, originals", "ours, 336-pixel shards"
LLAVA, LLAVA_SMALL = "LLaVA-style, originals", "LLaVA-style, 336-pixel files"
LLAVA_OUR_LABELS = "LLaVA-style with our labels, originals"
WDS, WDS_SHUFFLED = "WebDataset, stored order", f"WebDataset, buffer of {SHUFFLE_BUFFER}"
ORDER = (LLAVA, LLAVA_OUR_LABELS, LLAVA_SMALL, WDS_SHUFFLED, WDS, OWN, OWN_SMALL)
LARGE_SET = 3_000_000  # samples
WORKERS = 2  # processes that open the large set at the same time

_COMPARED = 100  # images whose pixels are compared


@dataclass(frozen=True)
class Findings:
    """Results of all measurements."""

    samples: int  # that were made
    costs: Mapping[str, Sequence[Cost]]  # of every loader, one a round
    memories: Mapping[str, Memory]  # of every loader
    record_bytes: float  # of a record in the LLaVA-style loader's list
    openings: Sequence[Opening]  # of the large set, one for each worker of each round
    builds: Sequence[Build]  # one a round
    verify_ms: Sequence[float]  # CPU milliseconds for an image, one a round
    differences: Mapping[str, tuple[float, float]]  # ours from the LLaVA-style loader's, largest and mean, in 1/255

    def ratio(self, other: str, ours: str) -> Spread:
        """Return the CPU time of another loader divided by that of ours, over the rounds."""
        pairs = zip(self.costs[other], self.costs[ours], strict=True)
        return Spread.of([theirs.cpu / mine.cpu for theirs, mine in pairs])

    def loading(self, loader: str) -> float:
        """Return the MiB that a loader takes beyond what its process had before."""
        return self.memories[loader].peak - self.memories[loader].before


def study(samples: int, rounds: int) -> Iterator[Report]:
    """Measure everything in a temporary folder. It needs about 600 KB of disk per sample."""
    with tempfile.TemporaryDirectory(prefix="llava-mini-bench-") as work:
        found = run(Path(work), samples, rounds)
    summary = [{**asdict(target), "met": target.met} for target in targets(found)]
    yield Report(text(found), {"targets": summary, "findings": asdict(found)}, draw=lambda: draw(found))


def run(work: Path, samples: int, rounds: int) -> Findings:
    """Generate the data in the empty folder `work` and measure everything."""
    log.info("making %d samples", samples)
    data = make_data(work / "made", samples)
    make_large_set(work / "large", LARGE_SET)
    loaders = _loaders(data)
    costs: dict[str, list[Cost]] = {name: [] for name in loaders}
    openings: list[Opening] = []
    builds: list[Build] = []
    verify_ms: list[float] = []
    for number in range(1, rounds + 1):
        for name, loader in loaders.items():
            costs[name].append(fresh(cost, loader, data, samples))
        openings += open_large_set(work / "large", WORKERS)
        builds.append(build(data, work / "built"))
        shutil.rmtree(work / "built")
        verify_ms.append(fresh(verification, data))
        found = ", ".join(f"{name} {each[-1].cpu:.2f}" for name, each in costs.items())
        log.info("round %d of %d, CPU-ms a sample: %s; build %.2f", number, rounds, found, builds[-1].cpu)
    memories = {name: fresh(memory, loader, data, samples) for name, loader in loaders.items()}
    compared = min(samples, _COMPARED)
    shards = {OWN: data.shards, OWN_SMALL: data.small_shards}
    differences = {name: pixel_difference(data, folder, compared) for name, folder in shards.items()}
    records = fresh(bytes_of_records, data)
    return Findings(samples, costs, memories, records, openings, builds, verify_ms, differences)


def _loaders(data: MadeData) -> dict[str, Loader]:
    return {
        LLAVA: partial(llava_style, data.images),
        OWN: partial(own, data.shards),
        LLAVA_OUR_LABELS: partial(llava_with_our_labels, data.images),
        LLAVA_SMALL: partial(llava_style, data.small_images),
        OWN_SMALL: partial(own, data.small_shards),
        WDS_SHUFFLED: partial(plain_webdataset, SHUFFLE_BUFFER),
        WDS: partial(plain_webdataset, 0),
    }


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
        """Whether the requirement is met."""
        return self.value >= self.limit if self.comparison == "at least" else self.value < self.limit


def targets(found: Findings) -> list[Target]:
    """Return the requirements in their order, with the measured values."""
    seconds = [each.seconds for each in found.openings]
    private = [each.private for each in found.openings]
    builds = Spread.of([1000 / each.cpu for each in found.builds])
    ratios = [
        ("CPU of the LLaVA-style loader over ours, 640x480 JPEGs", 3, found.ratio(LLAVA, OWN)),
        ("the same, ours from 336-pixel shards", 6, found.ratio(LLAVA, OWN_SMALL)),
        (f"CPU of {WDS_SHUFFLED}, over ours", 1, found.ratio(WDS_SHUFFLED, OWN)),
        (f"CPU of {WDS}, over ours", 1, found.ratio(WDS, OWN)),
    ]
    lines = [Target(text, "at least", limit, ratio.median, ratio.shown(2)) for text, limit, ratio in ratios]
    for other in (WDS_SHUFFLED, WDS):
        most, ours = found.loading(other), found.loading(OWN)
        lines.append(Target(f"memory of our loader, MiB; {other}: {most:.0f}", "below", most, ours, f"{ours:.0f}"))
    lines += [
        Target(f"seconds to open {LARGE_SET:,} samples", "below", 1, max(seconds), Spread.of(seconds).shown(2)),
        Target("private MiB of a worker for it", "below", 50, max(private), Spread.of(private).shown(1)),
        Target("samples built and verified a CPU-second", "at least", 400, builds.median, builds.shown(0)),
    ]
    return lines


def text(found: Findings) -> str:
    """Return all results as Markdown."""
    about = (
        f"{found.samples} samples with JPEGs of {found.builds[0].image_bytes / 1000:.0f} KB on average, read from"
        f" memory; one thread. Medians of {len(found.builds)} rounds (smallest to largest); ratios are taken within a"
        " round."
    )
    required = [
        (each.text, f"{each.comparison} {each.limit:.4g}", each.shown, "yes" if each.met else "no")
        for each in targets(found)
    ]
    rows = []
    for name in ORDER:
        cpu, wall = (Spread.of([getattr(cost, of) for cost in found.costs[name]]).shown(2) for of in ("cpu", "wall"))
        rows.append((name, cpu, wall, f"{found.loading(name):.0f}"))
    loaders = markdown(("loader", "CPU-ms a sample", "wall-ms a sample", "MiB while loading"), rows)
    requirements = markdown(("what", "required", "measured", "met"), required)
    return "\n\n".join((about, requirements, loaders, _about_loaders(found), _about_build(found)))


def _about_loaders(found: Findings) -> str:
    records = found.record_bytes
    (largest, mean), (largest_small, mean_small) = found.differences[OWN], found.differences[OWN_SMALL]
    return (
        "MiB are private memory beyond what the process had before, at their most. the LLaVA-style loader's list takes"
        f" {size_text(records)} a record, so {size_text(records * LARGE_SET)} for {LARGE_SET:,} records in every"
        f" process; our index is mapped, and {WORKERS} workers that opened it at the same time shared it.\n"
        f"Our pixels differ from the LLaVA-style loader's by {largest:.1f}/255 at most, {mean:.2f}/255 on average;"
        f" those of 336-pixel shards, compressed a second time, by {largest_small:.0f}/255 and {mean_small:.1f}/255."
        " Ours are bytes that the device normalizes, the LLaVA-style loader's are normalized floats."
    )


def _about_build(found: Findings) -> str:
    cpu = Spread.of([each.cpu for each in found.builds])
    verify = Spread.of(found.verify_ms)
    rate = found.builds[0].image_bytes / MIB * 1000 / cpu.median
    return (
        f"`data build` takes {cpu.shown(2)} CPU-ms a sample, its start included. Verifying the image is"
        f" {verify.shown(2)} of that, {100 * verify.median / cpu.median:.0f} %; the rest is reading, packing, hashing"
        f" and writing. A core then reads {rate:.0f} MiB/s and writes as much: a slower disk is the limit, else"
        " the decoder."
    )


def draw(found: Findings) -> Figure:
    """Draw CPU time and memory of every loader, ours in blue."""
    from matplotlib.figure import Figure

    from llava_mini.bench.plots import BLUE, GRID, INK, PALE, Bar, add_note, draw_bars

    costs = {name: [cost.cpu for cost in found.costs[name]] for name in ORDER}
    times = {name: Spread.of(values).median for name, values in costs.items()}
    memories = {name: found.loading(name) for name in ORDER}
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    time, memory = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    for axes, title, values, digits in (
        (time, "CPU-milliseconds a sample", times, 2),
        (memory, "MiB of private memory while loading", memories, 0),
    ):
        colors = {name: (BLUE if name in (OWN, OWN_SMALL) else PALE,) for name in ORDER}
        draw_bars(
            axes, title, [Bar(name, (values[name],), colors[name], f"{values[name]:.{digits}f}") for name in ORDER]
        )
        axes.grid(axis="x", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
    for row, rounds in enumerate(costs.values()):
        time.plot(rounds, [row] * len(rounds), "o", color=INK, markersize=2.5, alpha=0.6)
    add_note(figure, "Bars: medians; dots: rounds. One process, one thread.")
    return figure
