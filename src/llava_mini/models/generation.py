"""How generation deals with frames: they are read once with the prompt, and go with their sample when it is repeated.

Everything else (cache, sampling, beams, stopping) is transformers' own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin

from llava_mini.models.configuration import LlavaMiniConfig

_PREFILL_ONLY = ("pixel_values", "image_features", "num_frames", "num_views", "instruction_mask", "turn_ids")


def suppressed_tokens(config: LlavaMiniConfig, chosen: GenerationConfig, given: list[int] | None) -> list[int] | None:
    """Tokens that are never generated: those that were named, and the placeholder where the vocabulary has it."""
    named = chosen.suppress_tokens if given is None else given
    if config.image_token_id >= config.text_config.vocab_size:
        return named
    return [*(named or []), config.image_token_id]


class FramesGenerationMixin(GenerationMixin):
    """`generate` for a model whose forward pass takes frames, num_frames and an instruction mask."""

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; only the prompt, never a generated token, is seen by pre-fusion, also without a cache.

        The image placeholder stands for tokens of an image and is never generated.
        """
        prompt = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
        if kwargs.get("instruction_mask") is None and prompt is not None:
            mask = kwargs.get("attention_mask")
            kwargs["instruction_mask"] = torch.ones_like(prompt) if mask is None else mask.clone()
        chosen = kwargs.get("generation_config") or self.generation_config
        if suppressed := suppressed_tokens(self.config, chosen, kwargs.get("suppress_tokens")):
            kwargs["suppress_tokens"] = suppressed
        return super().generate(*args, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, is_first_iteration: bool | None = False, **kwargs: Any
    ) -> dict[str, Any]:
        inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in _PREFILL_ONLY:
                inputs.pop(name, None)
        elif "attention_mask" in inputs:
            # For a static cache it was made 4D, which does not tell padding; the language model does that by itself.
            inputs["attention_mask"] = kwargs.get("attention_mask")
        return inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Repeat every sample for beams or several answers; its frames are repeated as a block, not one by one."""
        frames = {name: model_kwargs.pop(name, None) for name in ("pixel_values", "image_features", "num_views")}
        num_frames = model_kwargs.get("num_frames")
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        for name, tensor in frames.items():
            if tensor is not None and num_frames is not None:
                samples = tensor.split(num_frames.tolist())
                tensor = torch.cat([sample for sample in samples for _ in range(expand_size)])
            model_kwargs[name] = tensor
        return input_ids, model_kwargs
