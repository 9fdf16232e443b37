"""Inputs of an answer in a session: the embeddings of the prompt, and how tokens are chosen.

Shapes: T tokens of a prompt, S of them visible to pre-fusion, D width of the language model.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from llava_mini.errors import UserError
from llava_mini.inference.conversation import Prompt
from llava_mini.inference.frame_cache import FrameCache
from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.models.generation import suppressed_tokens


def embedded(model: LlavaMiniForConditionalGeneration, store: FrameCache, prompt: Prompt, begin: int) -> Tensor:
    """Return embeddings of the prompt from `begin` on [T - begin, D]: compressed tokens, fused text, plain answers."""
    device = model.device
    ids = torch.tensor(prompt.ids, device=device)
    visible = torch.tensor(prompt.visible, device=device)
    placeholder = ids == model.config.image_token_id
    text_SD = model.embed(ids[visible][None], placeholder[visible][None])[0]
    fused_SD = store.read(text_SD) if bool(visible[begin:].any()) else text_SD
    part = slice(begin, None)
    embedded_TD = model.embed(ids[None, part], placeholder[None, part])[0].clone()
    first = int(visible[:begin].sum())
    embedded_TD[visible[part]] = fused_SD[first:].to(embedded_TD.dtype)
    if bool(placeholder[part].any()):
        tokens = store.tokens()[int(placeholder[:begin].sum()) :]
        embedded_TD[placeholder[part]] = tokens.to(embedded_TD.dtype)
    return embedded_TD


def generation_choices(
    model: LlavaMiniForConditionalGeneration, max_new_tokens: int, generation: dict[str, Any]
) -> tuple[GenerationConfig, dict[str, Any]]:
    """Return the model's generation config changed by a question's options, greedy by default; and unused options.

    Raises:
        UserError: the options request several answers at once.
    """
    config = copy.deepcopy(model.generation_config)
    one = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1}
    if several := [name for name in ("num_beams", "num_return_sequences") if generation.get(name, 1) != 1]:
        raise UserError(f"{several[0]}={generation[several[0]]}: a session makes one answer at a time; allowed is 1")
    rest = config.update(**{**one, "max_new_tokens": max_new_tokens, **generation})
    config.suppress_tokens = suppressed_tokens(model.config, config, None)
    return config, rest
