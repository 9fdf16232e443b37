"""Long contexts: scaling the language model for them, checks that frames and prompts fit, and reading in chunks.

A scaling is a value of the model's config, so it is saved with the model. Without one, a prompt that is too long is
refused before it is read, since a model says nothing useful beyond the positions that it was trained on. Frames and
prompts are checked before they are encoded or memory is allocated for them.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llava_mini.errors import UserError
from llava_mini.hardware import free_bytes
from llava_mini.inference.cache import SessionCache
from llava_mini.inference.frame_cache import FrameCache
from llava_mini.inference.memory import FrameShape, KVShape, check_frames, largest_frames
from llava_mini.models import LlavaMiniConfig, LlavaMiniForConditionalGeneration
from llava_mini.models.rotary import YARN, check_scaling, scale_rotary
from llava_mini.units import size_text


def extend_context(model: LlavaMiniForConditionalGeneration, tokens: int, kind: str = YARN) -> None:
    """Scale the language model's rotary embedding so that it reads `tokens` tokens; `save_pretrained` saves it.

    A KV cache that was filled before was rotated with the old frequencies. It must not be used afterwards.

    The model is as it was trained if `tokens`, of prompt and answer together, is the length that it was trained on.
    Kinds of scaling are linear, dynamic (NTK) and yarn.

    Raises:
        UserError: the kind is unknown, `tokens` is less than the model was trained on, or the kind cannot be combined
            with the scaling that the model was trained with.
    """
    config = model.config
    scaling = None if tokens == config.text_config.max_position_embeddings else {"kind": kind, "tokens": tokens}
    check_scaling(scaling, config.text_config)
    config.context_scaling = scaling
    scale_rotary(model.language_model, scaling)


def context_tokens(config: LlavaMiniConfig) -> int:
    """Return the number of tokens that the language model reads: those it was trained on, or those it is scaled for."""
    if config.context_scaling is None:
        return config.text_config.max_position_embeddings
    return config.context_scaling["tokens"]


def check_length(config: LlavaMiniConfig, text: int, answer: int, shown: int = 0) -> None:
    """Check that a prompt and its longest answer are no longer than what the language model reads.

    The prompt has `text` tokens of text, and `shown` ones that represent images and videos.

    Raises:
        UserError: prompt and answer are too long; the message gives the cause and the value to set.
    """
    most, tokens = context_tokens(config), text + answer + shown
    if tokens <= most:
        return
    key: str | None = None
    too_long = f"{tokens} tokens of prompt and answer, {shown} of them of what is shown"
    if text + answer > most:
        key = "question" if text > answer else "max_new_tokens"
        culprit = "the question is too long" if text > answer else "max_new_tokens is too large"
        too_long = f"{culprit}: {text} tokens of text and {answer} for the answer"
    more = f"context_scaling.tokens={tokens} (extend_context) scales it for more"
    raise UserError(f"{too_long}: the language model reads {most}; {more}", key=key, hint=more)


def check_capacity(
    store: FrameCache, cache: SessionCache, item: int, frames: int, views: int, *, reserve: int = 0
) -> None:
    """Check that `frames` more frames of an image or video fit; some of its frames may be stored already.

    Their tokens must fit what the language model reads, besides `reserve` for a question and its answer. What is always
    stored of them must fit into memory: tokens, features, the language model's KV cache.

    Raises:
        UserError: question and answer alone are too long, or the frames do not fit. The message then gives the number
            of frames that the item would have in all, and the largest number that fits.
    """
    model = store.model
    shape = FrameShape.of(model.config, model.layout.frame(views), views)
    tokens_of = partial(model.layout.frames, views=views)
    stored_tokens, earlier = store.tokens_by_item().total(), store.frames_of(item)
    if reserve > (most := context_tokens(model.config)):
        raise UserError(f"question and answer are too long: {reserve} tokens, of which the language model reads {most}")
    room = max(0, most - reserve - stored_tokens + tokens_of(earlier))
    if tokens_of(frames + earlier) > room:
        beside = f" besides {reserve} of question and answer" if reserve else ""
        raise UserError(
            f"{frames + earlier} frames are {tokens_of(frames + earlier)} tokens, of which the language model "
            f"reads {room}{beside}: at most {largest_frames(tokens_of, room)} frames fit, or scale it for more "
            "(context_scaling.tokens, by extend_context)",
            hint="context_scaling.tokens",
        )
    fuses = bool(model.config.num_fusion_layers)
    features = shape.features_bytes(store.keep.features_dtype(model.dtype)) if fuses else 0
    text = KVShape.of(model.config.text_config)

    def on_device(count: int) -> int:
        tokens = (
            text.cache_bytes(stored_tokens + tokens_of(count) + reserve, model.dtype, cache.bits) - cache.held_bytes
        )
        return max(0, tokens) + count * shape.tokens_bytes(model.dtype)

    host = free_bytes(torch.device("cpu"))
    if model.device.type == "cpu":
        check_frames(frames, lambda count: on_device(count) + count * features, host, "memory", earlier)
        return
    check_frames(frames, on_device, free_bytes(model.device), "GPU memory", earlier)
    check_frames(frames, lambda count: count * features, host, "host memory", earlier)


def check_prompt(store: FrameCache, cache: SessionCache, tokens: int) -> None:
    """Check that the KV cache of a prompt and answer fits into memory; what it takes already counts as free.

    Raises:
        UserError: the cache does not fit.
    """
    model = store.model
    need = KVShape.of(model.config.text_config).cache_bytes(tokens, model.dtype, cache.bits)
    free = free_bytes(model.device) + cache.held_bytes
    if need > free:
        raise UserError(
            f"a prompt and answer of {tokens} tokens need {size_text(need)} for the language model's cache, "
            f"{size_text(free)} are free: fewer frames, or kv_bits=8 or 4",
            hint="kv_bits=8",
        )


@torch.no_grad()
def prefill(language_model: PreTrainedModel, inputs_embeds: Tensor, cache: SessionCache, chunk: int) -> None:
    """Read the beginning of a prompt into the cache, `chunk` tokens at a time; the rest of the prompt is not read here.

    Memory is that of a chunk, its attention over all tokens before it, and the cache; no logits are computed. A cache
    with bits is frozen after every chunk, so that no more than one chunk is stored in full precision. Later chunks then
    read the earlier ones as they were rounded.

    The language model may be any of transformers. `inputs_embeds` [1, T, D] has the compressed tokens spliced in; T may
    be 0. The cache has the tokens before them.
    """
    for part in inputs_embeds.split(chunk, dim=1) if inputs_embeds.shape[1] else ():
        language_model.get_decoder()(inputs_embeds=part, past_key_values=cache, use_cache=True)
        cache.freeze()
