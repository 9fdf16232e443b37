"""Study of latency on a CPU: first and further tokens, batches, videos and follow-up questions, at a mid-size shape."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from llava_mini.bench.flop_count import Work
from llava_mini.bench.report import Report, markdown, metric_name
from llava_mini.bench.subjects import (
    OURS,
    RELEASED,
    TRANSFORMERS,
    UNCOMPRESSED,
    WAYS,
    FollowUp,
    Models,
    first_token,
    further_tokens,
    mid_size,
)
from llava_mini.bench.timing import Timing, Trial, matmul_peak, measure, prepacked_peak
from llava_mini.models import LlavaMiniConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("llava_mini")

# The two ways that are available without `prepack`.
UNPACKED = {way: f"{way}, not prepacked" for way in (TRANSFORMERS, OURS)}

IMAGE, VIDEO, FURTHER = "image", "video", "further token"
LATER_IMAGE, LATER_VIDEO = "follow-up question, image", "follow-up question, video"
SHARED_IMAGE, SHARED_VIDEO = f"{LATER_IMAGE}, system text shared", f"{LATER_VIDEO}, system text shared"

_FURTHER = 8  # tokens per run
_MATMUL = 2048


@dataclass(frozen=True)
class Setting:
    """Sizes of what is measured."""

    frames: int = 16  # of a video
    text_tokens: int = 40  # of a prompt
    shared_tokens: int = 35  # of these, a system text before the image (vicuna_v1 has 35 with Llama's tokenizer)
    batches: tuple[int, ...] = (4,)  # of images, in addition to 1


@dataclass(frozen=True)
class Requirement:
    """A required ratio: how many times as long `slow` takes as `fast`, each a way and a task."""

    text: str
    slow: tuple[str, str]
    fast: tuple[str, str]
    limit: float


REQUIREMENTS = (
    Requirement("image: transformers' LLaVA over ours", (TRANSFORMERS, IMAGE), (OURS, IMAGE), 3),
    Requirement(
        "image: transformers' LLaVA, not prepacked, over ours", (UNPACKED[TRANSFORMERS], IMAGE), (OURS, IMAGE), 3
    ),
    Requirement("image: ours without compression over ours", (UNCOMPRESSED, IMAGE), (OURS, IMAGE), 3),
    Requirement("video: the release's order over ours", (RELEASED, VIDEO), (OURS, VIDEO), 1.2),
    Requirement("image: first question over a later one", (OURS, IMAGE), (OURS, LATER_IMAGE), 2.5),
    Requirement("image: first question over a later one, system text shared", (OURS, IMAGE), (OURS, SHARED_IMAGE), 2.5),
    Requirement("video: first question over a later one", (OURS, VIDEO), (OURS, LATER_VIDEO), 6),
    Requirement("video: first question over a later one, system text shared", (OURS, VIDEO), (OURS, SHARED_VIDEO), 6),
)


@dataclass(frozen=True)
class Findings:
    """Results of all measurements."""

    rounds: int
    setting: Setting
    peak: Timing  # large matrix products, by the faster of two libraries
    timings: list[Timing]

    def find(self, way: str, task: str, batch: int = 1) -> Timing:
        return next(each for each in self.timings if (each.way, each.task, each.batch) == (way, task, batch))

    def ratio(self, required: Requirement, of: str = "wall") -> float:
        """Return the ratio of medians that is required; `of` is "wall" or "cpu"."""
        slow, fast = (getattr(self.find(*which), of).median for which in (required.slow, required.fast))
        return slow / fast

    def met(self, required: Requirement) -> bool:
        """Whether the ratio of wall times reaches the required limit."""
        return self.ratio(required) >= required.limit


def study(rounds: int) -> Iterator[Report]:
    """Measure on the CPU in float32, with torch's number of threads."""
    found = run(mid_size(), Setting(), rounds)
    yield Report(text(found), figures(found), metrics(found), lambda: draw(found))


def run(config: LlavaMiniConfig, setting: Setting, rounds: int) -> Findings:
    """Measure all ways in interleaved rounds."""
    device = torch.device("cpu")
    torch.manual_seed(0)
    models = Models(config, device, torch.float32, prepacked=True)
    unpacked = Models(config, device, torch.float32)
    with torch.no_grad():
        limits = [matmul_peak(device, torch.float32, _MATMUL), prepacked_peak(_MATMUL)]
        trials = [*limits, *_trials(models, setting), *_trials_unpacked(unpacked, setting)]
    log.info("measuring %d things in %d rounds and one to warm up", len(trials), rounds)
    found = measure(trials, rounds, device)
    peak = min(found[: len(limits)], key=lambda each: each.wall.median)
    return Findings(rounds, setting, peak, found[len(limits) :])


def _trials(models: Models, setting: Setting) -> list[Trial]:
    image = Work(text_tokens=setting.text_tokens)
    video = replace(image, frames=setting.frames)
    trials = [first(models, way, IMAGE, image, batch) for batch in (1, *setting.batches) for way in WAYS]
    trials += [first(models, way, VIDEO, video) for way in (RELEASED, OURS)]
    for alone, shared, work in ((LATER_IMAGE, SHARED_IMAGE, image), (LATER_VIDEO, SHARED_VIDEO, video)):
        trials += [later(models, alone, work), later(models, shared, work, setting.shared_tokens)]
    return trials + [further(models, way, image, _FURTHER) for way in WAYS]


def _trials_unpacked(models: Models, setting: Setting) -> list[Trial]:
    image = Work(text_tokens=setting.text_tokens)
    trials = [first(models, way, IMAGE, image) for way in UNPACKED]
    trials += [later(models, LATER_IMAGE, image), *(further(models, way, image, _FURTHER) for way in UNPACKED)]
    return [replace(trial, way=UNPACKED[trial.way]) for trial in trials]


def first(models: Models, way: str, task: str, work: Work, batch: int = 1) -> Trial:
    """Return the trial of a first token for a batch of prompts."""
    inputs: dict[str, Any] = models.prompt(way, work, batch)

    def prefill() -> None:
        first_token(models.of(way), inputs)

    return Trial(way, task, prefill, batch, work.frames, flops=batch * models.flops(way, work))


def later(models: Models, task: str, work: Work, shared: int = 0) -> Trial:
    """Return the trial of a follow-up question; `shared` text tokens have been read with the first one."""
    asked = FollowUp(models, work, shared)
    return Trial(OURS, task, asked.ask, frames=work.frames, flops=models.later_flops(work, shared))


def further(models: Models, way: str, work: Work, tokens: int) -> Trial:
    """Return the trial of a further token, of which each run decodes `tokens`."""
    model = models.of(way)
    cache = first_token(model, models.prompt(way, work))
    return Trial(way, FURTHER, partial(further_tokens, model, cache, tokens), times=tokens)


def rate(task: str, batch: int, frames: int, seconds: float, digits: int) -> str:
    """Return what is done in a second as text: images, frames of a video, or tokens."""
    unit = "frames" if frames > 1 else "tokens" if task.startswith(FURTHER) else "images"
    return f"{batch * frames / seconds:.{digits}f} {unit}"


def figures(found: Findings) -> dict[str, Any]:
    """Return all results and the required ratios, ready for JSON."""
    bars = [
        {"text": each.text, "at_least": each.limit, "wall": found.ratio(each), "cpu": found.ratio(each, "cpu"),
         "met": found.met(each)}
        for each in REQUIREMENTS
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
    ratios = {f"ratio.{metric_name(each.text)}": found.ratio(each) for each in REQUIREMENTS}
    return ratios | {
        f"{metric_name(each.task)}.{metric_name(each.way)}.batch_{each.batch}": 1000 * each.wall.median
        for each in found.timings
    }


def text(found: Findings) -> str:
    """Return all results as Markdown."""
    setting = found.setting
    about = (
        f"Seconds are medians of {found.rounds} interleaved rounds (least to most); float32; {setting.text_tokens} text"
        f" tokens; a video has {setting.frames} frames. Linear layers are prepacked for all ways but those that say"
        " otherwise, as all ways have the same ones. CPU-seconds are those of all threads. The matmul peak, measured"
        f" in the same rounds, is {_gflops(found.peak, 'wall'):.0f} GFLOP/s ({_gflops(found.peak, 'cpu'):.0f} a"
        " CPU-second); the last columns say how much of it a way reaches with the FLOPs that it does."
    )
    ratios = []
    for each in REQUIREMENTS:
        wall, cpu = (f"{found.ratio(each, of):.2f}" for of in ("wall", "cpu"))
        ratios.append((each.text, f"{each.limit:g}", wall, cpu, "yes" if found.met(each) else "no"))
    required = markdown(("how many times as fast", "required", "wall", "CPU", "met"), ratios)
    head = ("task", "way", "batch", "seconds", "CPU-seconds", "a second", "GFLOP", "of the peak", "a CPU-second")
    return "\n\n".join((about, required, markdown(head, [_cells(each, found.peak) for each in found.timings])))


def _cells(each: Timing, peak: Timing) -> list[str]:
    done = rate(each.task, each.batch, each.frames, each.wall.median, 2)
    cells = [each.task, each.way, str(each.batch), each.wall.shown(3), each.cpu.shown(3), done]
    if not each.flops:
        return [*cells, "", "", ""]
    return [*cells, f"{each.flops / 1e9:.1f}", *(f"{100 * each.share(peak, of):.0f} %" for of in ("wall", "cpu"))]


def _gflops(each: Timing, of: str) -> float:
    return float(each.flops / getattr(each, of).median / 1e9)


def draw(found: Findings) -> Figure:
    """Draw the seconds of first tokens, of a video, and of a further token."""
    from matplotlib.figure import Figure

    from llava_mini.bench.plots import BLUE, PALE, Bar, add_note, draw_bars

    def bars(shown: Sequence[tuple[str, str]]) -> list[Bar]:
        drawn = []
        for way, task in shown:
            name, wall = f"{way}{', follow-up question' if 'later' in task else ''}", found.find(way, task).wall
            colors = (BLUE if way == OURS else PALE,)
            drawn.append(Bar(name, (wall.median,), colors, f"{wall.median:.3g}", wall))
        return drawn

    ways = (UNPACKED[TRANSFORMERS], *WAYS[:-1], UNPACKED[OURS], OURS)
    figure = Figure(figsize=(13, 3.4), layout="constrained")
    image, video, token = figure.subplots(1, 3, width_ratios=[3, 2, 2])
    images = bars([*((way, IMAGE) for way in ways), (OURS, LATER_IMAGE)])
    draw_bars(image, "Image: seconds to the first token", images, room=1.25)
    draw_bars(video, "Video", bars([(RELEASED, VIDEO), (OURS, VIDEO), (OURS, LATER_VIDEO)]), room=1.25)
    draw_bars(token, "Further token", bars([(way, FURTHER) for way in ways]), room=1.25)
    add_note(figure, "Medians, and the range of the rounds.")
    return figure
