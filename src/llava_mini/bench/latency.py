"""Benchmark of latency on a CPU: first and further tokens, batches, videos and later questions, at a mid-size shape.

The shape keeps the real proportions: nearly all work of the uncompressed model is in the language model.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from llava_mini.bench.baselines import (
    OURS,
    RELEASED,
    TRANSFORMERS,
    UNCOMPRESSED,
    WAYS,
    FollowUp,
    Models,
    first_token,
    further_tokens,
)
from llava_mini.bench.flops import Work
from llava_mini.bench.stopwatch import Timing, Trial, matmul_peak, measure, prepacked_peak
from llava_mini.models import LlavaMiniConfig

log = logging.getLogger("llava_mini")

# The two ways that are available without `prepack`.
UNPACKED = {way: f"{way}, not prepacked" for way in (TRANSFORMERS, OURS)}

IMAGE, VIDEO, FURTHER = "image", "video", "further token"
LATER_IMAGE, LATER_VIDEO = "later question, image", "later question, video"
SHARED_IMAGE, SHARED_VIDEO = f"{LATER_IMAGE}, system text shared", f"{LATER_VIDEO}, system text shared"

_FURTHER = 8  # tokens per run
_MATMUL = 2048


@dataclass(frozen=True)
class Setting:
    """Sizes of what is measured.

    Attributes:
        frames: Number of frames in a video.
        text_tokens: Number of text tokens in a prompt.
        shared_tokens: Number of these text tokens that are a system text before the image (35 for vicuna_v1 with
            Llama's tokenizer).
        batches: Batch sizes for images, in addition to 1.
    """

    frames: int = 16
    text_tokens: int = 40
    shared_tokens: int = 35
    batches: tuple[int, ...] = (4,)


@dataclass(frozen=True)
class Bar:
    """A required ratio: how many times as long `slow` takes as `fast`."""

    text: str
    slow: tuple[str, str]
    fast: tuple[str, str]
    limit: float


BARS = (
    Bar("image: transformers' LLaVA over ours", (TRANSFORMERS, IMAGE), (OURS, IMAGE), 3),
    Bar("image: transformers' LLaVA, not prepacked, over ours", (UNPACKED[TRANSFORMERS], IMAGE), (OURS, IMAGE), 3),
    Bar("image: ours without compression over ours", (UNCOMPRESSED, IMAGE), (OURS, IMAGE), 3),
    Bar("video: the release's order over ours", (RELEASED, VIDEO), (OURS, VIDEO), 1.2),
    Bar("image: first question over a later one", (OURS, IMAGE), (OURS, LATER_IMAGE), 2.5),
    Bar("image: first question over a later one, system text shared", (OURS, IMAGE), (OURS, SHARED_IMAGE), 2.5),
    Bar("video: first question over a later one", (OURS, VIDEO), (OURS, LATER_VIDEO), 6),
    Bar("video: first question over a later one, system text shared", (OURS, VIDEO), (OURS, SHARED_VIDEO), 6),
)


@dataclass(frozen=True)
class Findings:
    """Results of all measurements.

    Attributes:
        rounds: Number of rounds.
        setting: Sizes of what was measured.
        peak: Timing of large matrix products, by the faster of two libraries.
        timings: Timings of all trials.
    """

    rounds: int
    setting: Setting
    peak: Timing
    timings: list[Timing]

    def find(self, way: str, task: str, batch: int = 1) -> Timing:
        return next(each for each in self.timings if (each.way, each.task, each.batch) == (way, task, batch))

    def ratio(self, bar: Bar, of: str = "wall") -> float:
        """Return the ratio of medians of `bar`; `of` is "wall" or "cpu"."""
        slow, fast = (getattr(self.find(*which), of).median for which in (bar.slow, bar.fast))
        return slow / fast


def mid_size() -> LlavaMiniConfig:
    """Return the mid-size config: 331 GFLOPs for an image without compression, 64 with it."""
    vision = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 6}
    text = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 32, "num_attention_heads": 12}
    return LlavaMiniConfig(
        vision_config={**vision, "patch_size": 14, "image_size": 336, "projection_dim": 384},
        text_config={**text, "vocab_size": 32000, "max_position_embeddings": 4096},
        image_token_id=31999,
        num_fusion_layers=4,
    )


def run(config: LlavaMiniConfig, setting: Setting, rounds: int) -> Findings:
    """Measure on the CPU in float32, with torch's number of threads."""
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
    video = Work(frames=setting.frames, text_tokens=setting.text_tokens)
    trials = [_first(models, way, IMAGE, image, batch) for batch in (1, *setting.batches) for way in WAYS]
    trials += [_first(models, way, VIDEO, video) for way in (RELEASED, OURS)]
    shared = setting.shared_tokens
    for task, work, known in (
        (LATER_IMAGE, image, 0), (SHARED_IMAGE, image, shared), (LATER_VIDEO, video, 0), (SHARED_VIDEO, video, shared),
    ):  # fmt: skip
        later = FollowUp(models, work, known)
        flops = models.later_flops(work, known)
        trials.append(Trial(OURS, task, later.ask, frames=work.frames, flops=flops))
    return trials + [_further(models, way, image) for way in WAYS]


def _trials_unpacked(models: Models, setting: Setting) -> list[Trial]:
    image = Work(text_tokens=setting.text_tokens)
    later = Trial(OURS, LATER_IMAGE, FollowUp(models, image).ask, flops=models.later_flops(image, 0))
    trials = [_first(models, way, IMAGE, image) for way in UNPACKED]
    trials += [later, *(_further(models, way, image) for way in UNPACKED)]
    return [replace(trial, way=UNPACKED[trial.way]) for trial in trials]


def _first(models: Models, way: str, task: str, work: Work, batch: int = 1) -> Trial:
    inputs: dict[str, Any] = models.prompt(way, work, batch)

    def first() -> None:
        first_token(models.of(way), inputs)

    return Trial(way, task, first, batch, work.frames, flops=batch * models.flops(way, work))


def _further(models: Models, way: str, work: Work) -> Trial:
    model = models.of(way)
    cache = first_token(model, models.prompt(way, work))
    return Trial(way, FURTHER, partial(further_tokens, model, cache, _FURTHER), times=_FURTHER)
