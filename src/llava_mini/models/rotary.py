"""Rotary embeddings of a language model that reads more tokens than it was trained on.

Frequencies are scaled once for a given number of tokens, not by the length of each prompt. Keys in a cache were rotated
with them, and a prompt that is read in parts must be rotated alike in all of them. Pre-fusion keeps its own
frequencies, because its sequence is one frame.
"""

from __future__ import annotations

import copy
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from llava_mini.errors import refused
from llava_mini.models.language_model import head_dim

LINEAR, DYNAMIC, YARN = "linear", "dynamic", "yarn"
KINDS = (LINEAR, DYNAMIC, YARN)
# Scalings that may be applied over the one that a model was trained with. Positions can be interpolated further. Llama
# 3.1's scaling is one of low frequencies from a shorter length, like YaRN's, so YaRN can start from there too.
_OVER = {"default": KINDS, "linear": (LINEAR,), "llama3": (YARN,)}


def check_scaling(scaling: Any, text_config: PreTrainedConfig) -> None:
    """Check that a config's `context_scaling` is None or {"kind": ..., "tokens": ...} and fits its language model.

    Raises:
        UserError: for any other value, or one that does not fit.
    """
    if scaling is None:
        return
    if not isinstance(scaling, dict) or set(scaling) != {"kind", "tokens"}:
        raise refused("context_scaling", scaling, allowed="none and {'kind': ..., 'tokens': ...}")
    kind, tokens = scaling["kind"], scaling["tokens"]
    if kind not in KINDS:
        raise refused("context_scaling.kind", kind, allowed=", ".join(KINDS))
    trained = text_config.max_position_embeddings
    if type(tokens) is not int or tokens <= trained:
        raise refused("context_scaling.tokens", tokens, allowed=f"whole numbers above the model's own {trained}")
    before = text_config.rope_parameters["rope_type"]
    if kind not in _OVER.get(before, ()):
        allowed = ", ".join(_OVER.get(before, ())) or "none"
        raise refused("context_scaling.kind", kind, f"the model's own scaling is {before}", only=allowed)


def scaled_parameters(text_config: PreTrainedConfig, kind: str, tokens: int) -> dict[str, Any]:
    """Return transformers' `rope_parameters` for `tokens` tokens.

    linear divides every frequency by the factor (position interpolation). dynamic raises the base so that the lowest
    frequency is divided by it and the highest stays (NTK, at the length `tokens`). yarn interpolates only low
    frequencies and raises the attention's temperature (YaRN).
    """
    trained = dict(text_config.rope_parameters)
    base, original = trained["rope_theta"], text_config.max_position_embeddings
    factor = tokens / original
    if kind == LINEAR:
        return {"rope_type": LINEAR, "rope_theta": base, "factor": factor * trained.get("factor", 1.0)}
    if kind == DYNAMIC:
        width = head_dim(text_config)
        return {"rope_type": "default", "rope_theta": base * factor ** (width / (width - 2))}
    original = trained.get("original_max_position_embeddings", original)
    return {
        "rope_type": YARN,
        "rope_theta": base,
        "factor": tokens / original,
        "original_max_position_embeddings": original,
    }


def scale_rotary(language_model: PreTrainedModel, scaling: dict[str, Any] | None) -> None:
    """Rebuild the decoder's rotary embedding as a config's `context_scaling` says; None: as it was trained."""
    decoder = language_model.get_decoder()
    config = copy.deepcopy(language_model.config)
    if scaling is not None:
        config.rope_parameters = scaled_parameters(config, **scaling)
        config.max_position_embeddings = scaling["tokens"]
    before = decoder.rotary_emb
    decoder.rotary_emb = type(before)(config).to(before.inv_freq.device)
