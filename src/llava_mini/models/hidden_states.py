"""The model without its language-model head, for trainers that make the loss from hidden states themselves (TRL)."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast


class HiddenStates:
    """Calls a model for its last hidden states.

    It is no module: the model has no part that could be called alone, as placeholders must be spliced first.

    Args:
        model: With a forward pass that takes `output_hidden_states` and `logits_to_keep`.
    """

    def __init__(self, model: PreTrainedModel):
        self._forward = model.forward
        self._asked = bool(model.config.output_hidden_states)
        self._tp_plan, self._pp_plan = model._tp_plan, model._pp_plan  # transformers asks base models for both

    def __call__(self, *args: Any, output_hidden_states: bool | None = None, **kwargs: Any) -> BaseModelOutputWithPast:
        """Hidden states after the last norm; the head is applied to one position only.

        Args:
            *args: As for the model.
            output_hidden_states: Whether those of all layers are given too. Default: as the config says.
            **kwargs: As for the model, without labels.

        Returns:
            last_hidden_state [B, T, D]; hidden_states where asked for, attentions and past_key_values as the model's.
        """
        made = self._forward(*args, **kwargs, output_hidden_states=True, logits_to_keep=1, return_dict=True)
        return BaseModelOutputWithPast(
            last_hidden_state=made.hidden_states[-1],
            past_key_values=made.past_key_values,
            hidden_states=made.hidden_states if (output_hidden_states or self._asked) else None,
            attentions=made.attentions,
        )
