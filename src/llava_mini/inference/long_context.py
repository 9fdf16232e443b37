"""More tokens than a language model was trained on, and prompts that are read in parts.

A scaling is a value of the model's config, so it is saved with it; without one a prompt that is too long is refused
before it is read, since a model says nothing of use beyond the positions that it knows.
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
    """Scale the language model's rotary embedding so that it reads `tokens` tokens; `save_pretrained` keeps it.

    What a cache holds was turned by the frequencies before and is of no use behind it.

    Args:
        model: Changed in place; as it was trained when `tokens` is what it was trained on.
        tokens: Prompt and answer together.
        kind: linear, dynamic (NTK) or yarn.

    Raises:
        UserError: an unknown kind, fewer tokens than the model was trained on, or a kind that cannot lie over the
            scaling that it was trained with.
    """
    config = model.config
    scaling = None if tokens == config.text_config.max_position_embeddings else {"kind": kind, "tokens": tokens}
    check_scaling(scaling, config.text_config)
    config.context_scaling = scaling
    scale_rotary(model.language_model, scaling)


def context_tokens(config: LlavaMiniConfig) -> int:
    """Tokens that the language model reads: those it was trained on, or those that it is scaled for."""
    if config.context_scaling is None:
        return config.text_config.max_position_embeddings
    return config.context_scaling["tokens"]


def check_length(config: LlavaMiniConfig, text: int, answer: int, shown: int = 0) -> None:
    """See that a prompt and its answer are no longer than what the language model reads.

    Args:
        config: The model's.
        text: Tokens of the prompt that are text.
        answer: Of the longest answer.
        shown: Of the prompt that stand for images and videos.

    Raises:
        UserError: they are longer; it says what is to blame, and names the value to set.
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
    """Read the beginning of a prompt behind what the cache holds, `chunk` tokens at a time; what follows it answers.

    Memory is that of a chunk, its attention over all before it, and the cache; no logits are made. A cache with bits
    is frozen behind every chunk, so that no more than one is held in full precision; later chunks then read the
    earlier ones as they were rounded.

    Args:
        language_model: Of LLaVA-Mini, or any that transformers has.
        inputs_embeds: [1, T, D], spliced; T may be 0.
        cache: Holds the beginning, and the prompt afterwards.
        chunk: Tokens, at least 1.
    """
    for part in inputs_embeds.split(chunk, dim=1) if inputs_embeds.shape[1] else ():
        language_model.get_decoder()(inputs_embeds=part, past_key_values=cache, use_cache=True)
        cache.freeze()
