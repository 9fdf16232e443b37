"""Generation with frames: they are read once, with the prompt, and are repeated together with their sample.

Everything else (cache, sampling, beams, stopping) is transformers' own. Options of transformers that do not work with
frames are refused by name, where transformers would fail in the middle or continue without the frames.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin

from llava_mini.errors import UserError, refused
from llava_mini.models.configuration import LlavaMiniConfig
from llava_mini.models.visual_model import VisualModel

_FRAMES = ("pixel_values", "image_features")
_PREFILL_ONLY = (*_FRAMES, "num_frames", "num_views", "instruction_mask", "turn_ids")


def suppressed_tokens(config: LlavaMiniConfig, chosen: GenerationConfig, given: list[int] | None) -> list[int] | None:
    """Token ids that are never generated: the named ones, and the placeholder where the vocabulary contains it."""
    named = chosen.suppress_tokens if given is None else given
    if config.image_token_id >= config.text_config.vocab_size:
        return named
    return [*(named or []), config.image_token_id]


class GenerativeModel(VisualModel, GenerationMixin):
    """Visual model that generates: its forward pass takes frames, num_frames and an instruction mask."""

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as in transformers; pre-fusion reads only the prompt, never a generated token, even without a cache.

        The image placeholder represents tokens of an image and is never generated. After a cache that contains frames,
        an answer continues without them. A next question needs them again, and an instruction_mask.

        Raises:
            UserError: for an option that is not available.
        """
        prompt = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
        chosen = kwargs.get("generation_config") or self.generation_config
        self._check_options(prompt, chosen, kwargs)
        past = kwargs.get("past_key_values")
        begins = past is None or past.get_seq_length() == 0
        if prompt is not None and begins and _has_frames(kwargs) and kwargs.get("instruction_mask") is None:
            mask = kwargs.get("attention_mask")
            kwargs["instruction_mask"] = torch.ones_like(prompt) if mask is None else mask.clone()
        if suppressed := suppressed_tokens(self.config, chosen, kwargs.get("suppress_tokens")):
            kwargs["suppress_tokens"] = suppressed
        return super().generate(*args, **kwargs)

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse continuous batching: its requests contain only ids.

        Raises:
            UserError: always.
        """
        raise UserError(
            "continuous batching (generate_batch, cache_implementation='paged') takes no frames; allowed is generate "
            "with a batch"
        )

    def _check_options(self, prompt: Tensor | None, chosen: GenerationConfig, given: dict[str, Any]) -> None:
        """Raises UserError for options that do not work with the frames of a prompt, or on this device."""
        cache, chunk, exit_layer = (
            given.get(name, getattr(chosen, name, None))
            for name in ("cache_implementation", "prefill_chunk_size", "assistant_early_exit")
        )
        if cache == "paged":
            self.init_continuous_batching()
        if cache in ("offloaded", "offloaded_static") and self.device.type == "cpu":
            raise refused("cache_implementation", cache, "this is for GPUs", allowed="dynamic and static on a CPU")
        if exit_layer is not None:
            raise refused("assistant_early_exit", exit_layer, "the layers are no model of their own", only="None")
        if not _has_frames(given) or prompt is None:
            return
        if chunk is not None and chunk < prompt.shape[1]:
            raise refused("prefill_chunk_size", chunk, "a prompt with frames is read at once", only="None")
        if given.get("assistant_model") is not None:
            self._check_assistant(given["assistant_model"])

    def _check_assistant(self, assistant: Any) -> None:
        """Raises UserError for an assistant that does not read a prompt with frames as this model does."""
        if getattr(assistant.config, "model_type", None) != self.config.model_type:
            reason, only = f"{type(assistant).__name__} reads no frames", f"a {type(self).__name__}"
            raise refused("assistant_model", assistant, reason, only=only, given="assistant_model")
        own, other = (
            {"image_token_id": each.config.image_token_id, "tokens of a frame": each.layout.frame()}
            for each in (self, assistant)
        )
        if own != other:
            raise refused("assistant_model", other, "it must be as in this model", only=str(own))

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, is_first_iteration: bool | None = False, **kwargs: Any
    ) -> dict[str, Any]:
        past = kwargs.get("past_key_values")
        past_length = 0 if past is None else past.get_seq_length()
        # An assistant's first iteration is not marked as one. A static cache, which an assistant cannot have, counts
        # its length in a tensor.
        reads = bool(is_first_iteration) or (isinstance(past_length, int) and past_length == 0)
        inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=reads, **kwargs)
        if not reads and kwargs.get("use_cache", True):
            for name in _PREFILL_ONLY:
                inputs.pop(name, None)
        elif "attention_mask" in inputs:
            # For a static cache the mask was made 4D and does not show padding. The language model makes it 4D itself.
            inputs["attention_mask"] = kwargs.get("attention_mask")
        if reads and inputs["input_ids"].shape[1] < input_ids.shape[1] and _has_frames(inputs):
            self._with_held(inputs, input_ids)
        return inputs

    def _with_held(self, inputs: dict[str, Any], input_ids: Tensor) -> None:
        """After a cache: pair frames of the new text with it; if others are given, pre-fusion reads the whole text."""
        frames = self.frames(*(inputs.get(name) for name in (*_FRAMES, "num_views")))
        tokens = 0 if frames is None else self.layout.sample(frames.views().tolist())
        new, mask = inputs["input_ids"], inputs.get("instruction_mask")
        if tokens > 0 and tokens == int((new == self.config.image_token_id).sum()):
            inputs["instruction_mask"] = None if mask is None else mask[:, -new.shape[1] :]
            return
        if mask is None:
            raise UserError(
                "past_key_values holds frames that are given again: leave them out to continue an answer, or say "
                "with instruction_mask [B, T] what pre-fusion reads for a next question"
            )
        inputs["input_ids"] = input_ids
        if inputs.get("attention_mask") is None:  # transformers omits a mask that hides nothing
            inputs["attention_mask"] = torch.ones_like(input_ids)

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


def _has_frames(given: dict[str, Any]) -> bool:
    return any(given.get(name) is not None for name in _FRAMES)
