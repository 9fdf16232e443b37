"""Study of latency on a GPU at the 7B shape, in parts that each run in a process of their own.

Latency: the first token for an image, a batch, an HD image and a video; follow-up questions; further tokens; each with
the matmul peak of the same rounds. Long video: 10,000 frames within the memory of a 24 GB card. Decoding: with a static
cache, compiled and not.

It needs only torch and transformers (with its dependencies), so that it runs on a machine where nothing else of this
project is installed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from transformers import CompileConfig

from llava_mini.bench.flop_count import Work
from llava_mini.bench.latency import FURTHER, IMAGE, VIDEO, first, further, later, rate
from llava_mini.bench.processes import NOT_RUN, Measuring, status_of
from llava_mini.bench.report import Report, markdown
from llava_mini.bench.subjects import OURS, RELEASED, TRANSFORMERS, WAYS, Models, card_gib, model_config
from llava_mini.bench.timing import Trial, clock, elapsed, matmul_peak, measure
from llava_mini.inference.cache import SessionCache
from llava_mini.inference.frame_cache import FrameCache, FrameCacheConfig
from llava_mini.models.frame_batch import frames_at_once
from llava_mini.out_of_memory import is_out_of_memory
from llava_mini.token_layout import HD_VIEWS
from llava_mini.units import GIB

log = logging.getLogger("llava_mini")

Row = dict[str, Any]

LONG_VIDEO = "long video"

_CARD = "rtx4090_24gb"  # whose memory the long video must fit
_CHUNK = 512  # tokens that the language model reads in one forward pass


@dataclass(frozen=True)
class Size:
    """Shapes and counts of the measurements."""

    preset: str  # of conf/model
    dtype: torch.dtype  # of weights and states
    batch: int  # images
    frames: int  # of a video
    text_tokens: int  # of a prompt
    further: int  # tokens that are decoded
    long_frames: int  # of the long video
    matmul: int  # rows of the square matrices whose product gives the matmul peak
    rounds: int

    def models(self, device: torch.device) -> Models:
        """Return all ways with random weights."""
        return Models(model_config(self.preset), device, self.dtype)


REAL = Size("llava_mini_vicuna_7b", torch.bfloat16, 16, 64, 40, 64, 10_000, 8192, 5)
TINY = Size("tiny", torch.float32, 2, 3, 5, 3, 40, 64, 2)


def study(seconds: float, tiny: bool) -> Iterator[Report]:
    """Run all parts, with a report after each; `tiny` shapes run on the CPU.

    After `seconds` the running part is ended. Each part gets its share of the remaining time.
    """
    end, rows = time.monotonic() + seconds, list[Row]()
    shares = [share for _, share in PARTS.values()]
    for number, name in enumerate(PARTS):
        left = end - time.monotonic()
        rows += measure_part(name, left * shares[number] / sum(shares[number:]), tiny)
        log.info("%s: done", name)
        yield report(rows)


def measure_part(name: str, seconds: float, tiny: bool) -> list[Row]:
    """Run a part in its own process and return its rows, including those before a failure or timeout."""
    rows, error = Measuring(_rows_of, name, 0.9 * seconds, tiny).results(seconds)
    return [*rows, {"task": name, "status": status_of(error)}] if error else rows


def _rows_of(name: str, seconds: float, tiny: bool) -> Iterator[Row]:
    run, _ = PARTS[name]
    size, device = (TINY, "cpu") if tiny else (REAL, "cuda")
    torch.manual_seed(0)
    return run(size, torch.device(device), time.monotonic() + seconds)


def latency(size: Size, device: torch.device, end: float) -> Iterator[Row]:
    """Measure first and further tokens of every way; after a task that runs out of memory, the next one is measured."""
    models = size.models(device)
    for name, make in _tasks(models, size).items():
        if time.monotonic() >= end:
            yield {"task": name, "status": NOT_RUN}
            continue
        try:
            with torch.no_grad():
                trials = [matmul_peak(device, size.dtype, size.matmul), *make()]
            peak, *timings = measure(trials, size.rounds, device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            yield {"task": name, "status": status_of(error)}
            continue
        for each in timings:
            found = {"peak_tflops": peak.flops / peak.wall.median / 1e12, "peak_share": each.share(peak)}
            yield {**asdict(each), "status": "measured", **(found if each.flops else {})}


def _tasks(models: Models, size: Size) -> dict[str, Callable[[], list[Trial]]]:
    image = Work(text_tokens=size.text_tokens)
    works = {IMAGE: image, "HD image": replace(image, views=HD_VIEWS), VIDEO: replace(image, frames=size.frames)}

    def firsts(task: str, what: str, ways: tuple[str, ...], batch: int = 1) -> list[Trial]:
        return [first(models, way, task, works[what], batch) for way in ways]

    def laters(task: str, what: str) -> list[Trial]:
        return [later(models, task, works[what])]

    return {
        IMAGE: partial(firsts, IMAGE, IMAGE, WAYS),
        "images": partial(firsts, "images", IMAGE, WAYS, size.batch),
        "HD image": partial(firsts, "HD image", "HD image", (TRANSFORMERS, RELEASED, OURS)),
        VIDEO: partial(firsts, VIDEO, VIDEO, (RELEASED, OURS)),
        **{f"follow-up question, {what}": partial(laters, f"follow-up question, {what}", what) for what in works},
        FURTHER: lambda: [further(models, way, image, size.further) for way in WAYS],
    }


@torch.no_grad()
def long_video(size: Size, device: torch.device, end: float) -> Iterator[Row]:
    """Encode a long video in micro-batches and ask two questions about it, within the memory of a 24 GB card."""
    limit_gib = card_gib(_CARD)
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit_gib * GIB / total), device)
    model = size.models(device).of(OURS)
    config = FrameCacheConfig(kv_budget=0, features="int8")
    store, cache = FrameCache(model, config, kv_budget=0), SessionCache(model.config)
    began = time.monotonic()
    encoded = began + 0.35 * (end - began)  # the rest is for two questions, each of which recomputes keys and values

    def encode() -> None:
        side = model.config.vision_config.image_size
        while len(store) < size.long_frames and time.monotonic() < encoded:
            most = min(frames_at_once(model.config, 1, size.dtype, device), size.long_frames - len(store))
            pixels = torch.randn(most, 1, 3, side, side, device=device, dtype=size.dtype)
            store.add(0, model.encode(pixels), most)

    def ask() -> None:
        text_SD = model.get_input_embeddings().weight[: size.text_tokens]
        model.language_model(inputs_embeds=store.read(text_SD)[None], past_key_values=cache, logits_to_keep=1)

    def ask_first() -> None:
        for chunk_TD in store.tokens().split(_CHUNK):
            model.get_decoder()(inputs_embeds=chunk_TD[None], past_key_values=cache, use_cache=True)
        ask()

    seconds, _ = elapsed(encode, device)
    row: Row = {"task": LONG_VIDEO, "way": OURS, "frames": len(store), "frames_per_s": len(store) / seconds}
    row["question_s"], _ = elapsed(ask_first, device)
    cache.cut(len(store.tokens()))
    row["later_question_s"], _ = elapsed(ask, device)
    row["host_gib"] = store.held_bytes()["features"] / GIB
    if device.type == "cuda":
        row |= {"limit_gib": limit_gib, "peak_gib": torch.cuda.max_memory_reserved(device) / GIB}
    whole = len(store) == size.long_frames
    yield {**row, "status": "measured" if whole else f"{len(store)} of {size.long_frames} frames in the time"}


def decoding(size: Size, device: torch.device, end: float) -> Iterator[Row]:
    """Measure a further token of `generate` with a static cache, compiled and not."""
    models = size.models(device)
    model, inputs = models.of(OURS), models.prompt(OURS, Work(text_tokens=size.text_tokens))
    model.generation_config.eos_token_id = None
    compiled: dict[str, Any] = {}
    if device.type == "cpu":  # transformers compiles on GPUs only; the eager backend needs no C++ compiler
        config = CompileConfig(fullgraph=True, backend="eager", mode=None)
        config._compile_all_devices = True
        compiled = {"compile_config": config}
    for name, options in (("not compiled", {"disable_compile": True}), ("compiled", compiled)):
        task = f"{FURTHER}, static cache, {name}"
        if time.monotonic() >= end:
            yield {"task": task, "status": NOT_RUN}
            continue

        def generate(tokens: int, options: dict[str, Any] = options) -> None:
            lengths = {"min_new_tokens": tokens, "max_new_tokens": tokens}
            model.generate(**inputs, cache_implementation="static", do_sample=False, **lengths, **options)

        begin, _ = elapsed(partial(generate, size.further + 1), device)  # includes the compilation, if any
        trials = [Trial(OURS, task, partial(generate, tokens)) for tokens in (size.further + 1, 1)]
        many, one = (seconds.wall for seconds in clock(trials, size.rounds, device))
        further_s = sorted(more - least for more, least in zip(many, one, strict=True))
        median = further_s[len(further_s) // 2] / size.further
        yield {"task": task, "way": OURS, "status": "measured", "wall": {"median": median}, "first_run_s": begin}


PARTS: dict[str, tuple[Callable[[Size, torch.device, float], Iterator[Row]], float]] = {
    "latency": (latency, 0.4),
    "long_video": (long_video, 0.4),
    "decoding": (decoding, 0.2),
}
"""In this order, with the share of the time that each may take."""


def report(rows: list[Row]) -> Report:
    """Return the report of the rows so far: one for everything that was tried, with its status and results."""
    peaks = [row["peak_tflops"] for row in rows if "peak_tflops" in row]
    head = ("task", "way", "batch", "milliseconds", "a second", "TFLOP", "of the matmul peak", "status")
    parts = [f"The matmul peak is {max(peaks):.1f} TFLOP/s."] if peaks else []
    parts.append(markdown(head, [_cells(row) for row in rows if row["task"] != LONG_VIDEO]))
    parts += [_sentences(row) for row in rows if row["task"] == LONG_VIDEO]
    return Report("\n\n".join(parts), {"rows": rows}, complete=all(row["status"] == "measured" for row in rows))


def _cells(row: Row) -> list[str]:
    wall = row.get("wall", {}).get("median")
    batch, frames = row.get("batch", 1), row.get("frames", 1)
    cells = [row["task"], row.get("way", ""), str(row.get("batch", ""))]
    cells += [f"{1000 * wall:.2f}", rate(row["task"], batch, frames, wall, 1)] if wall else ["", ""]
    cells += [f"{row['flops'] / 1e12:.2f}", f"{100 * row['peak_share']:.0f} %"] if "peak_share" in row else ["", ""]
    return [*cells, row["status"]]


def _sentences(row: Row) -> str:
    """Return the row of the long video as sentences, which come after the table."""
    if "frames_per_s" not in row:
        return f"Long video: {row['status']}."
    memory = f"; at most {row['peak_gib']:.2f} of {row['limit_gib']:g} GiB on the card" if "peak_gib" in row else ""
    return (
        f"Long video ({row['status']}): {row['frames']:,} frames, {row['frames_per_s']:.1f} frames/s; a question"
        f" {row['question_s']:.1f} s, a later one {row['later_question_s']:.1f} s{memory}; features in 8 bits in host"
        f" memory, {row['host_gib']:.2f} GiB."
    )
