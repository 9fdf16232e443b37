"""Study of memory: the visual state of one image, sessions of ten thousand frames, and measured peaks of sessions.

The first two are arithmetic over the published shapes (`inference.memory`, `inference.session_plan`). Nothing of that
size is allocated. The peaks are measured, each in a new process that encodes a stream of frames and answers one
question: how far its resident memory grows beyond what the model takes. That model is small with random weights, but a
frame has 576 patches as in the real models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig

from llava_mini.bench.processes import fresh, resident_memory, settled_memory
from llava_mini.bench.report import Report, markdown, metric_name
from llava_mini.bench.subjects import card_bytes, model_config, on_meta
from llava_mini.data.text.templates import TINY
from llava_mini.data.toyworld.tokenizer import build_tokenizer
from llava_mini.inference.frame_cache import FrameCacheConfig
from llava_mini.inference.memory import FrameShape, KVShape
from llava_mini.inference.session import Session
from llava_mini.inference.session_plan import SessionPlan, session_plans
from llava_mini.inference.session_plan import table as sessions_table
from llava_mini.models import LlavaMiniConfig, LlavaMiniForConditionalGeneration, LlavaMiniProcessor
from llava_mini.settings import conf
from llava_mini.token_layout import HD_VIEWS, SINGLE_VIEW
from llava_mini.units import MIB

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODELS = {"LLaVA-Mini, Vicuna-7B": "llava_mini_vicuna_7b", "LLaVA-Mini, Llama-3.1-8B": "llava_mini_llama31_8b"}
FRAMES = 10_000
CARD = "rtx4090_24gb"
HALF = torch.float16

LLAVA, OURS_KV, OURS = "LLaVA-v1.5, all patches", "LLaVA-Mini, fusion's KV kept", "LLaVA-Mini, features kept"
POINTS = {LLAVA: (4, 8, 16), OURS_KV: (4, 16, 64), OURS: (4, 16, 64, 256)}
SIDE = 336  # pixels

_FRAME_BATCH = 4
_QUESTION = "what is here"


@dataclass(frozen=True)
class VisualState:
    """What the language model stores of an image."""

    model: str
    views: int  # of the image
    tokens: tuple[int, int]  # of LLaVA-v1.5 (all patches) and of LLaVA-Mini
    bytes: tuple[int, int]  # of their keys and values in half precision


@dataclass(frozen=True)
class Point:
    """Measured memory of one session."""

    way: str  # `LLAVA`, `OURS_KV` or `OURS`
    frames: int  # that were encoded
    peak_bytes: int  # growth of the resident memory
    cache_bytes: int  # of it the language model's KV cache


def study() -> Iterator[Report]:
    """Plan at real sizes and measure every point in a new process."""
    states, plans = visual_states(), all_session_plans()
    yield report(states, plans, measure())


def visual_states() -> list[VisualState]:
    """Return the visual states of an image and an HD image, for every model."""
    states = []
    for name, preset in MODELS.items():
        config = model_config(preset)
        token = KVShape.of(config.text_config).token_bytes(HALF)
        for views in (SINGLE_VIEW, HD_VIEWS):
            tokens = (FrameShape.of(config, tokens=1, views=views).patches, 1)
            states.append(VisualState(name, views, tokens, (tokens[0] * token, tokens[1] * token)))
    return states


def all_session_plans() -> list[SessionPlan]:
    """Return session plans for `FRAMES` frames on `CARD`, for every model.

    The weights are in fp16 and NF4, the KV cache in fp16, 8 and 4 bits.
    """
    card = card_bytes(CARD)
    models = ((name, on_meta(model_config(preset))) for name, preset in MODELS.items())
    return [plan for name, model in models for plan in session_plans(name, model, FRAMES, card)]


def measure() -> list[Point]:
    """Measure every point in a new process."""
    return [fresh(session_peak, way, frames) for way, numbers in POINTS.items() for frames in numbers]


def session_peak(way: str, frames: int) -> Point:
    """Measure one point in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, processor = _model(way)
    keep = FrameCacheConfig(kv_budget=0) if way == OURS else FrameCacheConfig(kv_budget=2**40)
    before = 0
    for count in (1, frames):  # the first warms up: what it loads is not the cost of a frame
        session = Session(model, processor, keep=keep, frame_batch=_FRAME_BATCH)
        before = settled_memory()
        session.add_media(_frames(count))
        session.ask(_QUESTION, max_new_tokens=2)
    _, most = resident_memory()
    return Point(way, frames, most - before, session.cache.used_bytes)


def _model(way: str) -> tuple[LlavaMiniForConditionalGeneration, LlavaMiniProcessor]:
    tokenizer, plain = build_tokenizer(), way == LLAVA
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=8, num_attention_heads=4,
        max_position_embeddings=32_768, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, image_size=SIDE,
        patch_size=14,
    )  # fmt: skip
    config = LlavaMiniConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        compressor=conf("compressor/none") if plain else {**conf("compressor/query"), "num_heads": 4},
        num_fusion_layers=0 if plain else 2,
    )
    model = LlavaMiniForConditionalGeneration(config).eval()
    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE)
    tokens = model.layout.frame()
    return model, LlavaMiniProcessor(
        images, tokenizer, num_image_tokens=tokens, num_hd_image_tokens=4 * tokens, chat_template=TINY.chat_template()
    )


def _frames(count: int) -> Iterator[np.ndarray]:
    noise = np.random.default_rng(0)
    return (noise.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(count))


def report(states: Sequence[VisualState], plans: list[SessionPlan], points: Sequence[Point]) -> Report:
    """Return visual states, session plans and measured peaks as a report."""
    measured = [(p.way, p.frames, f"{p.peak_bytes / MIB:.1f}", f"{p.cache_bytes / MIB:.1f}") for p in points]
    about = (
        "Growth of a process' memory while it looks at frames as a stream and answers a question; float32, a small"
        " model with random weights (language model 128 wide, 8 layers), 576 patches a frame."
    )
    parts = (
        "The first two tables are arithmetic over the published shapes, the last one is measured.",
        _states_table(states),
        sessions_table(plans),
        about,
        markdown(("model", "frames", "peak, MiB", "of it the language model's cache, MiB"), measured),
    )
    figures = {
        "visual_state": [asdict(state) for state in states],
        "sessions": [plan.as_dict() for plan in plans],
        "measured": [asdict(point) for point in points],
    }
    return Report("\n\n".join(parts), figures, _metrics(plans, points), lambda: draw(points))


def _states_table(states: Sequence[VisualState]) -> str:
    head = ("keys and values of an image", "tokens: LLaVA-v1.5", "LLaVA-Mini", "LLaVA-v1.5, MiB", "LLaVA-Mini, MiB")
    rows = []
    for state in states:
        kind = "standard" if state.views == SINGLE_VIEW else "HD"
        rows.append((f"{state.model}, {kind}", *state.tokens, *(f"{size / MIB:.2f}" for size in state.bytes)))
    return markdown(head, rows)


def _metrics(plans: Sequence[SessionPlan], points: Sequence[Point]) -> dict[str, Any]:
    """Return the MLflow metrics: frames that fit, bytes of sessions, measured peaks."""
    sessions = {metric_name(f"{plan.model} {plan.weights} {plan.bits or 16} bits"): plan for plan in plans}
    return {
        "largest_frames": {name: plan.largest for name, plan in sessions.items()},
        "session_bytes": {name: plan.total_bytes for name, plan in sessions.items()},
        "peak_bytes": {metric_name(f"{point.way} {point.frames} frames"): point.peak_bytes for point in points},
    }


def draw(points: Sequence[Point]) -> Figure:
    """Draw the peaks against the number of frames."""
    from matplotlib.figure import Figure

    from llava_mini.bench.plots import BLUE, GRID, PALE

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for way, color in {LLAVA: PALE, OURS_KV: "#56b4e9", OURS: BLUE}.items():
        chosen = [point for point in points if point.way == way]
        axes.plot([p.frames for p in chosen], [p.peak_bytes / MIB for p in chosen], "o-", color=color, label=way)
    axes.set(xscale="log", yscale="log", xlabel="frames", ylabel="peak memory beyond the model's, MiB")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=GRID, linewidth=0.8)
    axes.legend(frameon=False)
    return figure
