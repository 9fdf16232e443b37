"""Measured peak memory of a session against its number of frames: all patches to the language model, or one token.

Every point is a separate process that encodes a stream of frames and answers one question. The result is how far its
resident memory grows beyond what the model takes. The model is small with random weights, but a frame has 576 patches
as in the real models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig

from llava_mini.bench.process_memory import fresh, resident_memory, settled_memory
from llava_mini.data.text.templates import TINY
from llava_mini.data.toyworld.tokenizer import build_tokenizer
from llava_mini.inference.frame_cache import FrameCacheConfig
from llava_mini.inference.session import Session
from llava_mini.models import LlavaMiniConfig, LlavaMiniForConditionalGeneration, LlavaMiniProcessor

LLAVA, OURS_KV, OURS = "LLaVA-v1.5, all patches", "LLaVA-Mini, fusion's KV kept", "LLaVA-Mini, features kept"
POINTS = {LLAVA: (4, 8, 16), OURS_KV: (4, 16, 64), OURS: (4, 16, 64, 256)}
SIDE = 336  # pixels

_FRAME_BATCH = 4
_QUESTION = "what is here"
_ALL: dict[str, Any] = {"_target_": "llava_mini.models.compressors.none.NoCompressor"}
_ONE: dict[str, Any] = {"_target_": "llava_mini.models.compressors.query.QueryCompressor", "C": 1, "num_heads": 4}


@dataclass(frozen=True)
class Point:
    """Measured memory of one session.

    Attributes:
        way: Variant of the session: `LLAVA`, `OURS_KV` or `OURS`.
        frames: Number of encoded frames.
        peak_bytes: Growth of the resident memory in bytes.
        cache_bytes: Bytes of it that are the language model's KV cache.
    """

    way: str
    frames: int
    peak_bytes: int
    cache_bytes: int


def measure() -> list[Point]:
    """Measure every point in a new process."""
    return [fresh(session_peak, way, frames) for way, numbers in POINTS.items() for frames in numbers]


def session_peak(way: str, frames: int) -> Point:
    """Measure one point in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, processor = _model(way)
    keep = FrameCacheConfig(kv_budget=0) if way == OURS else FrameCacheConfig(kv_budget=2**40)
    session = Session(model, processor, keep=keep, frame_batch=_FRAME_BATCH)
    session.add_media(_frames(1))  # warm up: what the first call loads is not the cost of a frame
    session.ask(_QUESTION, max_new_tokens=2)
    session = Session(model, processor, keep=keep, frame_batch=_FRAME_BATCH)
    before = settled_memory()
    session.add_media(_frames(frames))
    session.ask(_QUESTION, max_new_tokens=2)
    _, most = resident_memory()
    return Point(way, frames, most - before, session.cache.used_bytes)


def _model(way: str) -> tuple[LlavaMiniForConditionalGeneration, LlavaMiniProcessor]:
    tokenizer = build_tokenizer()
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=8, num_attention_heads=4,
        max_position_embeddings=32_768, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=14,
    )
    config = LlavaMiniConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        compressor=_ALL if way == LLAVA else _ONE,
        num_fusion_layers=0 if way == LLAVA else 2,
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
