"""LLaVA-Mini: images, HD images, videos and text through vision tower, compressor, pre-fusion and language model.

The forward pass follows the paper's Figure 6: embed, encode, compress, project, fuse, splice, decode. The four
between embed and splice are in `fuse_frames`, as frames go through them part by part.

Shapes: B samples, T tokens, F frames of the whole batch, V views of a frame, N patches of a view, K compressed tokens
of a frame, D width of the language model, Dv of the vision tower.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from llava_mini.errors import refused
from llava_mini.files import set_usual_mode
from llava_mini.models.attention import mask_for, packed_positions
from llava_mini.models.compressors import Compressor
from llava_mini.models.configuration import LlavaMiniConfig
from llava_mini.models.generation import GenerativeModel
from llava_mini.models.inputs import (
    NoPromptTuning,
    check_answers_are_known,
    check_frames,
    check_no_frames,
    check_placeholders,
    instruction,
    language_model_keywords,
)
from llava_mini.models.language_model import build_language_model
from llava_mini.models.loss import next_token_loss, next_token_loss_of_hidden
from llava_mini.models.rotary import scale_rotary
from llava_mini.models.visual_tokens import splice


class LlavaMiniForConditionalGeneration(GenerativeModel):
    """LLaVA-Mini with a language-model head.

    Args:
        config: Config with shapes and order of operations; weights are random until loaded.

    Attributes:
        loss_chunk: Number of tokens whose logits are in memory at once in training; None: all supervised tokens.
    """

    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "video", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _skip_keys_device_placement = ["past_key_values"]

    def __init__(self, config: LlavaMiniConfig):
        super().__init__(config)
        self.language_model = build_language_model(config.text_config)
        if config.context_scaling is not None:
            scale_rotary(self.language_model, config.context_scaling)
        self.loss_chunk: int | None = None
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        if isinstance(module, Compressor):
            module.reset_parameters()
        else:
            super()._init_weights(module)

    @property
    def base_model(self) -> HiddenStates:
        """The model without its head, as TRL's trainers call it; it returns `last_hidden_state` [B, T, D]."""
        return HiddenStates(self)

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: torch.nn.Module) -> None:
        self.language_model.set_output_embeddings(value)

    def get_decoder(self) -> PreTrainedModel:
        return self.language_model.get_decoder()

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save as transformers does, with the usual mode for weight files, which safetensors makes owner-only."""
        super().save_pretrained(save_directory, *args, **kwargs)
        for path in Path(save_directory).glob("*.safetensors"):
            set_usual_mode(path)

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args: Any, **kwargs: Any) -> str:
        if attn_implementation not in (None, "sdpa", "eager"):
            reason = "it takes no mask of turns or of what pre-fusion sees"
            raise refused("attn_implementation", attn_implementation, reason, allowed="sdpa and eager")
        return super()._check_and_adjust_attn_implementation(attn_implementation, *args, **kwargs)

    def get_submodule(self, target: str) -> torch.nn.Module:
        """Return a submodule as torch does; for PEFT's name of word embeddings, a module that refuses prompt tuning."""
        return NoPromptTuning() if target == "embeddings.word_embeddings" else super().get_submodule(target)

    def set_attn_implementation(self, attn_implementation: str | dict[str, Any], **kwargs: Any) -> None:
        """Set the attention implementation as in transformers; pre-fusion follows the language model."""
        super().set_attn_implementation(attn_implementation, **kwargs)
        self.prefusion.config._attn_implementation = self.config.text_config._attn_implementation

    @can_return_tuple  # type: ignore[untyped-decorator] # mypy does not read transformers
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        num_frames: Tensor | None = None,
        num_views: Tensor | None = None,
        image_features: Tensor | None = None,
        turn_ids: Tensor | None = None,
        instruction_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return logits, and the loss when labels are given.

        Training with labels returns the loss without logits, and computes only the logits that the loss needs.

        Args:
            input_ids: Token ids, [B, T]; every frame is K placeholders `config.image_token_id`, in the order of the
                frames. With a cache: the new ids, or with frames the whole text, of which only the new part is decoded.
            attention_mask: Mask of the tokens, [B, T (with a cache: past + T)]; 0 is padding, on either side.
            pixel_values: Normalized pixels, [F, V, 3, H, W]; V = 1, or 5 (four crops row by row, then the whole image).
            num_frames: Number of frames of each sample, [B]; needed with pixel_values or image_features.
            num_views: Number of real views of every frame, [F], 1 or 5, when it differs; the rest of V is padding.
            image_features: Features [F, V, N, Dv] from `encode`, instead of pixel_values.
            turn_ids: Turn of every token, [B, T]; 0 for the shared prefix, i for the i-th turn. Turns do not attend to
                one another.
            instruction_mask: Mask of the text that pre-fusion reads, [B, T]. Default: where labels are -100 (release),
                or all text.
            position_ids: Position of every token, [B, T]; default: counted over unmasked tokens.
            past_key_values: Cache of earlier tokens. Their frames must have been given with them. They are given again
                only where pre-fusion shall read a new question with them.
            labels: Token ids to predict, [B, T]; -100 is not predicted.
            use_cache: Whether to use a cache. Default: no when labels are given, else the config's value.
            logits_to_keep: Number of last positions that get logits, as in transformers.
            num_items_in_batch: Divisor of the sum of the tokens' losses; from transformers' Trainer it is the number of
                supervised tokens in a whole step. Default: the number in this batch, so the loss is their mean.
            **kwargs: Keywords for the language model, as in transformers; inputs_embeds must be None.

        Raises:
            TypeError: for a keyword that nothing reads.
            ValueError: when frames, views or placeholders do not match, there are no ids, or nothing says which part of
                a training text pre-fusion may read.
        """
        kwargs = language_model_keywords(input_ids, kwargs)
        assert input_ids is not None
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        if attention_mask is None:
            attention_mask = input_ids.new_ones(len(input_ids), past + input_ids.shape[1])
        placeholder_BT = input_ids == self.config.image_token_id
        inputs_embeds = self.embed(input_ids, placeholder_BT)
        frames = self.frames(pixel_values, image_features, num_views)
        if frames is not None:
            num_frames = check_frames(num_frames, len(frames), len(input_ids))
            check_placeholders(placeholder_BT, frames.views(), num_frames, self.layout)
            if self.training and torch.is_grad_enabled() and self.config.num_fusion_layers > 0:
                check_answers_are_known(labels, instruction_mask)
            instruction_BT = instruction(attention_mask, placeholder_BT, labels, instruction_mask)
            tokens, text = self.fuse_frames(frames, inputs_embeds, instruction_BT, turn_ids, num_frames)
            inputs_embeds = splice(text, placeholder_BT, tokens)
            if past_key_values is not None and input_ids.shape[1] == attention_mask.shape[-1]:
                inputs_embeds = inputs_embeds[:, int(past) :]
        elif isinstance(past, int) and past == 0:  # a static cache that was written to counts its length in a tensor
            check_no_frames(placeholder_BT, num_frames)
            if self.runs_all_layers:
                inputs_embeds = inputs_embeds + self._nothing_seen()
        if use_cache is None and labels is not None:
            use_cache = False
        return self.decode(
            inputs_embeds,
            attention_mask,
            position_ids,
            turn_ids,
            labels,
            num_items_in_batch,
            past_key_values=past_key_values,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    def embed(self, input_ids: Tensor, placeholder_BT: Tensor) -> Tensor:
        """Token embeddings [B, T, D]; placeholders, whose id may be beyond the vocabulary, are filled in later."""
        return self.get_input_embeddings()(input_ids.masked_fill(placeholder_BT, 0))

    def decode(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None,
        turn_ids_BT: Tensor | None,
        labels_BT: Tensor | None,
        num_items: Tensor | int | None,
        past_key_values: Any,
        logits_to_keep: int | Tensor,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run the language model over spliced embeddings [B, T, D], and compute its loss where there are labels."""
        if turn_ids_BT is not None and past_key_values is not None:
            raise ValueError("turn_ids: independent turns are for training and evaluation, not for cached generation")
        if position_ids is None and attention_mask.dim() == 2:
            position_ids = packed_positions(attention_mask.bool(), turn_ids_BT)[:, -inputs_embeds.shape[1] :]
        if turn_ids_BT is not None:
            implementation = self.config.text_config._attn_implementation
            attention_mask = mask_for(implementation, attention_mask.bool(), turn_ids_BT, inputs_embeds.dtype)
        kwargs |= {
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "return_dict": True,
        }
        if labels_BT is None:
            return self.language_model(**kwargs, logits_to_keep=logits_to_keep)
        if self.training:
            decoded, head = self.get_decoder()(**kwargs), self.get_output_embeddings()
            hidden_BTD = decoded.last_hidden_state
            loss = next_token_loss_of_hidden(hidden_BTD, head, labels_BT, turn_ids_BT, self.loss_chunk, num_items)
            return CausalLMOutputWithPast(loss=loss, hidden_states=decoded.hidden_states, attentions=decoded.attentions)
        outputs = self.language_model(**kwargs, logits_to_keep=logits_to_keep)
        loss = next_token_loss(outputs.logits, labels_BT, turn_ids_BT, num_items)
        return CausalLMOutputWithPast(**{**outputs, "loss": loss})  # the loss comes first, also in a tuple


class HiddenStates:
    """Callable that returns the last hidden states of a model.

    It is not a module: no part of the model could be called alone, because placeholders must be replaced first.
    """

    def __init__(self, model: PreTrainedModel):
        self._forward = model.forward
        self._asked = bool(model.config.output_hidden_states)
        self._tp_plan, self._pp_plan = model._tp_plan, model._pp_plan  # transformers reads both from base models

    def __call__(self, *args: Any, output_hidden_states: bool | None = None, **kwargs: Any) -> BaseModelOutputWithPast:
        """Return the hidden states after the last norm; the head is applied to one position only.

        The arguments are the model's, without labels.

        Returns:
            last_hidden_state [B, T, D]; hidden_states if requested; attentions and past_key_values as the model's.
        """
        made = self._forward(*args, **kwargs, output_hidden_states=True, logits_to_keep=1, return_dict=True)
        return BaseModelOutputWithPast(
            last_hidden_state=made.hidden_states[-1],
            past_key_values=made.past_key_values,
            hidden_states=made.hidden_states if (output_hidden_states or self._asked) else None,
            attentions=made.attentions,
        )
