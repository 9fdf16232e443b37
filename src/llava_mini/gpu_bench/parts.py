"""The parts of the bench, each of which runs in its own process and yields rows as it measures them.

Latency: the first token for an image, a batch, an HD image and a video; later questions; further tokens; each next to
the matmul peak of the same rounds. Long video: 10,000 frames within the memory of a 24 GB card. Decoding: with a static
cache, compiled and not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from transformers import CompileConfig

from llava_mini.bench.baselines import OURS, RELEASED, TRANSFORMERS, WAYS, FollowUp, Models, first_token, further_tokens
from llava_mini.bench.flops import Work
from llava_mini.bench.stopwatch import Trial, measure
from llava_mini.gpu_bench.sizes import LIMIT_GIB, Size
from llava_mini.inference.cache import SessionCache
from llava_mini.inference.frame_cache import FrameCache, FrameCacheConfig
from llava_mini.models.frame_batch import frames_at_once
from llava_mini.token_layout import HD_VIEWS

Row = dict[str, Any]
Part = Callable[[Size, torch.device, float], Iterator[Row]]

_CHUNK = 512  # tokens that the language model reads in one forward pass


def latency(size: Size, device: torch.device, end: float) -> Iterator[Row]:
    """Measure first and further tokens of every way; after a task that runs out of memory, the next one is measured."""
    models = Models(size.config(), device, size.dtype)
    for name, make in _tasks(models, size).items():
        if time.monotonic() >= end:
            yield {"task": name, "status": "not run: no time left"}
            continue
        try:
            with torch.no_grad():
                trials = [size.peak(device), *make()]
            peak, *timings = measure(trials, size.rounds, device)
        except torch.OutOfMemoryError as error:
            yield {"task": name, "status": f"out of memory: {str(error).splitlines()[0]}"}
            continue
        for each in timings:
            found = {"peak_tflops": peak.flops / peak.wall.median / 1e12, "peak_share": each.share(peak)}
            yield {**asdict(each), "status": "measured", **(found if each.flops else {})}


def _tasks(models: Models, size: Size) -> dict[str, Callable[[], list[Trial]]]:
    image = Work(text_tokens=size.text_tokens)
    hd = Work(views=HD_VIEWS, text_tokens=size.text_tokens)
    video = Work(frames=size.frames, text_tokens=size.text_tokens)

    def first(task: str, work: Work, ways: tuple[str, ...], batch: int = 1) -> list[Trial]:
        return [
            Trial(
                way,
                task,
                partial(_first, models, way, models.prompt(way, work, batch)),
                batch,
                work.frames,
                batch * models.flops(way, work),
            )
            for way in ways
        ]

    def later(task: str, work: Work) -> list[Trial]:
        return [Trial(OURS, task, FollowUp(models, work).ask, frames=work.frames, flops=models.later_flops(work, 0))]

    def further() -> list[Trial]:
        trials = []
        for way in WAYS:
            cache = first_token(models.of(way), models.prompt(way, image))
            run = partial(further_tokens, models.of(way), cache, size.further)
            trials.append(Trial(way, "further token", run, times=size.further))
        return trials

    mini = (RELEASED, OURS)
    return {
        "image": lambda: first("image", image, WAYS),
        "images": lambda: first("images", image, WAYS, size.batch),
        "HD image": lambda: first("HD image", hd, (TRANSFORMERS, *mini)),
        "video": lambda: first("video", video, mini),
        "later question, image": lambda: later("later question, image", image),
        "later question, HD image": lambda: later("later question, HD image", hd),
        "later question, video": lambda: later("later question, video", video),
        "further token": further,
    }


def _first(models: Models, way: str, inputs: dict[str, Any]) -> None:
    first_token(models.of(way), inputs)


@torch.no_grad()
def long_video(size: Size, device: torch.device, end: float) -> Iterator[Row]:
    """Encode a long video in micro-batches and ask two questions about it, within the memory of a 24 GB card."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, LIMIT_GIB * 2**30 / total), device)
    model = Models(size.config(), device, size.dtype).of(OURS)
    store, cache = (
        FrameCache(model, FrameCacheConfig(kv_budget=0, features="int8"), kv_budget=0),
        SessionCache(model.config),
    )
    image_size = model.config.vision_config.image_size
    began = time.monotonic()
    looked = began + 0.35 * (end - began)  # the rest is for two questions, each of which recomputes keys and values
    while len(store) < size.long_frames and time.monotonic() < looked:
        most = min(frames_at_once(model.config, 1, size.dtype, device), size.long_frames - len(store))
        pixels = torch.randn(most, 1, 3, image_size, image_size, device=device, dtype=size.dtype)
        store.add(0, model.encode(pixels), most)
    _wait(device)
    seconds = time.monotonic() - began
    frames_TD = store.tokens()
    row: Row = {"task": "long video", "way": OURS, "frames": len(store), "frames_per_s": len(store) / seconds}
    asked = time.monotonic()
    for chunk_TD in frames_TD.split(_CHUNK):
        model.get_decoder()(inputs_embeds=chunk_TD[None], past_key_values=cache, use_cache=True)
    _ask(model, store, cache, size.text_tokens)
    row["question_s"] = time.monotonic() - asked
    cache.cut(len(frames_TD))
    asked = time.monotonic()
    _ask(model, store, cache, size.text_tokens)
    row["later_question_s"] = time.monotonic() - asked
    row["host_gib"] = store.held_bytes()["features"] / 2**30
    if device.type == "cuda":
        row |= {"limit_gib": LIMIT_GIB, "peak_gib": torch.cuda.max_memory_reserved(device) / 2**30}
    whole = len(store) == size.long_frames
    yield {**row, "status": "measured" if whole else f"{len(store)} of {size.long_frames} frames in the time"}


def _ask(model: Any, store: FrameCache, cache: SessionCache, text_tokens: int) -> None:
    text_SD = model.get_input_embeddings().weight[:text_tokens]
    model.language_model(inputs_embeds=store.read(text_SD)[None], past_key_values=cache, logits_to_keep=1)
    _wait(model.device)


def decoding(size: Size, device: torch.device, end: float) -> Iterator[Row]:
    """Measure a further token of `generate` with a static cache, compiled and not."""
    models = Models(size.config(), device, size.dtype)
    model, inputs = models.of(OURS), models.prompt(OURS, Work(text_tokens=size.text_tokens))
    model.generation_config.eos_token_id = None
    compiled: dict[str, Any] = {}
    if device.type == "cpu":  # transformers compiles on GPUs only; the eager backend needs no C++ compiler
        config = CompileConfig(fullgraph=True, backend="eager", mode=None)
        config._compile_all_devices = True
        compiled = {"compile_config": config}
    for name, options in (("not compiled", {"disable_compile": True}), ("compiled", compiled)):
        if time.monotonic() >= end:
            yield {"task": f"further token, static cache, {name}", "status": "not run: no time left"}
            continue

        def seconds(tokens: int, options: dict[str, Any] = options) -> float:
            began = time.monotonic()
            model.generate(
                **inputs, cache_implementation="static", do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens,
                **options,
            )  # fmt: skip
            _wait(device)
            return time.monotonic() - began

        begin = seconds(size.further + 1)  # includes the compilation, if any
        best = [seconds(size.further + 1) - seconds(1) for _ in range(size.rounds)]
        yield {
            "task": f"further token, static cache, {name}",
            "way": OURS,
            "status": "measured",
            "wall": {"median": sorted(best)[len(best) // 2] / size.further},
            "first_run_s": begin,
        }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


PARTS: dict[str, tuple[Part, float]] = {
    "latency": (latency, 0.4),
    "long_video": (long_video, 0.4),
    "decoding": (decoding, 0.2),
}
"""In this order, with the share of the time that each may take."""
