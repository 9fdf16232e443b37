"""Checks that frames and prompts fit a session, before they are encoded or memory is allocated for them."""

from __future__ import annotations

import torch

from llava_mini.errors import UserError
from llava_mini.hardware import free_bytes
from llava_mini.inference.cache import SessionCache
from llava_mini.inference.frame_cache import FrameCache
from llava_mini.inference.long_context import context_tokens
from llava_mini.inference.memory import FrameShape, KVShape, check_frames
from llava_mini.units import size_text


def check_capacity(
    store: FrameCache, cache: SessionCache, item: int, frames: int, views: int, *, reserve: int = 0
) -> None:
    """Check that `frames` more frames fit.

    Their tokens must fit what the language model reads. What is always stored of them must fit into memory: tokens,
    features, the language model's KV cache.

    Args:
        store: Frames of the session so far.
        cache: KV cache of the language model.
        item: Number of the image or video that the frames belong to; some of its frames may be stored already.
        frames: Number of frames to add.
        views: Number of views of each frame.
        reserve: Number of tokens that must stay free for a question and its answer.

    Raises:
        UserError: question and answer alone are too long, or the frames do not fit. The message then gives the number
            of frames that the item would have in all, and the largest number that fits.
    """
    model = store.model
    shape = FrameShape.of(model.config, model.layout.frame(views), views)
    tokens_by_item = store.tokens_by_item()
    stored_tokens, earlier = tokens_by_item.total(), tokens_by_item[item] // shape.tokens
    if reserve > (most := context_tokens(model.config)):
        raise UserError(f"question and answer are too long: {reserve} tokens, of which the language model reads {most}")
    room = max(0, most - reserve - stored_tokens + earlier * shape.tokens)
    if (frames + earlier) * shape.tokens > room:
        beside = f" besides {reserve} of question and answer" if reserve else ""
        raise UserError(
            f"{frames + earlier} frames are {(frames + earlier) * shape.tokens} tokens, of which the language model "
            f"reads {room}{beside}: at most {room // shape.tokens} frames fit, or scale it for more "
            "(extend_context, --context)"
        )
    fuses = bool(model.config.num_fusion_layers)
    features = shape.features_bytes(store.keep.features_dtype(model.dtype)) if fuses else 0
    text = KVShape.of(model.config.text_config)

    def on_device(count: int) -> int:
        tokens = (
            text.cache_bytes(stored_tokens + count * shape.tokens + reserve, model.dtype, cache.bits) - cache.held_bytes
        )
        return max(0, tokens) + count * shape.tokens_bytes(model.dtype)

    host = free_bytes(torch.device("cpu"))
    if model.device.type == "cpu":
        check_frames(frames, lambda count: on_device(count) + count * features, host, "memory", earlier)
        return
    check_frames(frames, on_device, free_bytes(model.device), "GPU memory", earlier)
    check_frames(frames, lambda count: count * features, host, "host memory", earlier)


def check_prompt(store: FrameCache, cache: SessionCache, tokens: int) -> None:
    """Check that the language model's KV cache fits into memory before it grows.

    Args:
        store: Frames of the session.
        cache: KV cache of the language model; the memory that it takes counts as free.
        tokens: Number of tokens of prompt and answer.

    Raises:
        UserError: the cache does not fit.
    """
    model = store.model
    need = KVShape.of(model.config.text_config).cache_bytes(tokens, model.dtype, cache.bits)
    free = free_bytes(model.device) + cache.held_bytes
    if need > free:
        raise UserError(
            f"a prompt and answer of {tokens} tokens need {size_text(need)} for the language model's cache, "
            f"{size_text(free)} are free: fewer frames, or kv_bits=8 or 4"
        )
