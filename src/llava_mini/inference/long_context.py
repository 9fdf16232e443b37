"""Contexts longer than the language model was trained on, and prompts that are read in chunks.

A scaling is a value of the model's config, so it is saved with the model. Without one, a prompt that is too long is
refused before it is read, since a model says nothing useful beyond the positions that it was trained on.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llava_mini.errors import UserError
from llava_mini.inference.cache import SessionCache
from llava_mini.models import LlavaMiniConfig, LlavaMiniForConditionalGeneration
from llava_mini.models.rotary import YARN, check_scaling, scale_rotary


def extend_context(model: LlavaMiniForConditionalGeneration, tokens: int, kind: str = YARN) -> None:
    """Scale the language model's rotary embedding so that it reads `tokens` tokens; `save_pretrained` saves it.

    A KV cache that was filled before was rotated with the old frequencies. It must not be used afterwards.

    Args:
        model: Model, changed in place; it is as it was trained if `tokens` is the length that it was trained on.
        tokens: Number of tokens of prompt and answer together.
        kind: Kind of scaling: linear, dynamic (NTK) or yarn.

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
    """Check that a prompt and its answer are no longer than what the language model reads.

    Args:
        config: Config of the model.
        text: Number of text tokens of the prompt.
        answer: Number of tokens of the longest answer.
        shown: Number of prompt tokens that represent images and videos.

    Raises:
        UserError: prompt and answer are too long; the message gives the cause and the value to set.
    """
    most, tokens = context_tokens(config), text + answer + shown
    if tokens <= most:
        return
    too_long = f"{tokens} tokens of prompt and answer, {shown} of them of what is shown"
    if text + answer > most:
        culprit = "the question is too long" if text > answer else "max_new_tokens is too large"
        too_long = f"{culprit}: {text} tokens of text and {answer} for the answer"
    raise UserError(
        f"{too_long}: the language model reads {most}; "
        f"context_scaling.tokens={tokens} (extend_context, --context) scales it for more"
    )


@torch.no_grad()
def prefill(language_model: PreTrainedModel, inputs_embeds: Tensor, cache: SessionCache, chunk: int) -> None:
    """Read the beginning of a prompt into the cache, `chunk` tokens at a time; the rest of the prompt is not read here.

    Memory is that of a chunk, its attention over all tokens before it, and the cache; no logits are computed. A cache
    with bits is frozen after every chunk, so that no more than one chunk is stored in full precision. Later chunks then
    read the earlier ones as they were rounded.

    Args:
        language_model: Language model of LLaVA-Mini, or any of transformers.
        inputs_embeds: Embeddings [1, T, D] with compressed tokens spliced in; T may be 0.
        cache: KV cache with the tokens before `inputs_embeds`, to which these are added.
        chunk: Number of tokens that are read at once, at least 1.
    """
    for part in inputs_embeds.split(chunk, dim=1) if inputs_embeds.shape[1] else ():
        language_model.get_decoder()(inputs_embeds=part, past_key_values=cache, use_cache=True)
        cache.freeze()
