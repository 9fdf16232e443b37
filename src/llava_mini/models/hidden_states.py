"""The model without its language-model head, for trainers that compute the loss from hidden states (TRL)."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast


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
