"""Study of training steps on a CPU: seconds by part in interleaved rounds, for a tiny and a mid-size shape.

A round runs the step of every way once and times each part separately. So other load on the machine affects all ways
alike. Ratios are taken within a round.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llava_mini.bench.report import Report, markdown, metric_name
from llava_mini.bench.subjects import TRANSFORMERS
from llava_mini.bench.timing import Seconds, Spread, clock
from llava_mini.bench.training_steps import BACKWARD, DATA, FORWARD, OPTIMIZER, PARTS, Shape, build_steps, mid, tiny

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("llava_mini")

_TINY_ROUNDS = 8  # rounds of the toy world per round of the mid-size shape, whose step takes a hundred times as long
_MS = 1000


@dataclass(frozen=True)
class StepTimes:
    """Time of the training steps of one way."""

    way: str
    samples: int  # of a batch
    tokens: int  # of the language model's sequences, with padding and placeholders
    parts: Mapping[str, Seconds]  # of each round

    def steps(self, of: str = "cpu") -> list[float]:
        """Return the seconds of the whole step in each round; `of` is "wall" or "cpu"."""
        return [sum(parts) for parts in zip(*(getattr(seconds, of) for seconds in self.parts.values()), strict=True)]

    def step(self, of: str) -> Spread:
        """Return the seconds of the whole step; `of` is "wall" or "cpu"."""
        return Spread.of(self.steps(of))

    def part(self, name: str) -> Spread:
        """Return the CPU-seconds of a part."""
        return Spread.of(self.parts[name].cpu)

    def rate(self) -> Spread:
        """Return the samples per CPU-second."""
        return Spread.of([self.samples / seconds for seconds in self.steps()])


@dataclass(frozen=True)
class Findings:
    """Results of one shape."""

    shape: str  # its name
    rounds: int
    ways: list[StepTimes]

    def find(self, way: str) -> StepTimes:
        return next(each for each in self.ways if each.way == way)

    def ratio(self, way: str, of: str = "cpu") -> Spread:
        """Return how many times as fast a step of `way` is as transformers' step; `of` is "wall" or "cpu"."""
        pairs = zip(self.find(TRANSFORMERS).steps(of), self.find(way).steps(of), strict=True)
        return Spread.of([theirs / ours for theirs, ours in pairs])


def study(rounds: int) -> Iterator[Report]:
    """Measure both shapes in float32, with torch's number of threads; the tiny one in eight times as many rounds."""
    with tempfile.TemporaryDirectory(prefix="llava-mini-bench-") as work:
        found = run(Path(work), rounds)
    yield Report(text(found), {"shapes": figures(found)}, metrics(found), lambda: draw(found))


def run(work: Path, rounds: int) -> list[Findings]:
    """Measure both shapes, with their data in the empty folder `work`."""
    tiny_world = measure_shape(tiny(work / "tiny"), work / "tiny-features", _TINY_ROUNDS * rounds)
    return [tiny_world, measure_shape(mid(work / "mid"), work / "mid-features", rounds)]


def measure_shape(shape: Shape, features: Path, rounds: int) -> Findings:
    """Measure the training step of every way; `features` is a folder for the vision tower's features."""
    torch.manual_seed(0)
    steps = build_steps(shape, features)
    log.info("%s: %d ways, %d rounds and one to warm up", shape.name, len(steps), rounds)
    seconds = iter(clock([trial for step in steps for trial in step.trials()], rounds, torch.device("cpu")))
    return Findings(
        shape.name,
        rounds,
        [StepTimes(step.way, step.samples, step.tokens, {part: next(seconds) for part in PARTS}) for step in steps],
    )


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


def text(found: Sequence[Findings]) -> str:
    """Return all results as Markdown, one table per shape."""
    about = (
        "A step makes a batch from shards, runs the model forward and backward, clips the gradients and lets AdamW"
        " change the weights; float32. Figures are medians over interleaved rounds (least to most); ratios are of"
        " CPU-seconds and taken within a round. The parts are CPU-milliseconds and their share of the step; tokens are"
        " those of the language model's sequences with padding."
    )
    head = ("way", "tokens", "samples a CPU-second", "times transformers'", "CPU-ms", "wall-ms", *PARTS)
    parts = [about]
    for each in found:
        parts.append(f"**{each.shape}**, {each.ways[0].samples} samples a step, {each.rounds} rounds")
        parts.append(markdown(head, [_cells(each, way) for way in each.ways]))
    return "\n\n".join(parts)


def _cells(found: Findings, way: StepTimes) -> list[str]:
    digits = max(2 - math.floor(math.log10(way.rate().median)), 0)  # three digits that count
    cells = [way.way, str(way.tokens), way.rate().shown(digits), found.ratio(way.way).shown(2)]
    cells += [f"{_MS * way.step(of).median:.0f}" for of in ("cpu", "wall")]
    # Shares are of the CPU-seconds of all rounds, so that they add up to 100.
    shares = {part: 100 * sum(way.parts[part].cpu) / sum(way.steps()) for part in PARTS}
    return cells + [f"{_MS * way.part(part).median:.1f} ({share:.0f} %)" for part, share in shares.items()]


def draw(found: Sequence[Findings]) -> Figure:
    """Draw the parts of each way's step."""
    from matplotlib.figure import Figure

    from llava_mini.bench.plots import BLUE, GRAY, INK, PALE, Bar, add_note, draw_bars

    colors = {DATA: PALE, FORWARD: "#56B4E9", BACKWARD: BLUE, OPTIMIZER: GRAY}  # blues are Okabe and Ito's
    figure = Figure(figsize=(13, 3.2), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, each in zip(panels, found, strict=True):
        bars = []
        for way in each.ways:
            widths = [_MS * way.part(part).median / way.samples for part in PARTS]
            shown = f"{sum(widths):,.{0 if sum(widths) > 100 else 1}f}  ({each.ratio(way.way).median:.2f}x)"
            bars.append(Bar(way.way, widths, list(colors.values()), shown))
        draw_bars(axes, f"{each.shape}: CPU-ms a sample", bars, PARTS, room=1.3)
    panels[-1].legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="lower right")
    add_note(figure, "Medians of the parts.")
    return figure
