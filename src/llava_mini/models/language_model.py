"""The language model, and decoder layers of its class for pre-fusion; transformers builds both from its config."""

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from llava_mini.errors import UserError

FAMILIES = ("llama", "mistral", "qwen2")


def build_language_model(text_config: PreTrainedConfig) -> PreTrainedModel:
    """Build a model with random weights in the shape of `text_config`, in torch's default dtype like all other parts.

    The config of a published model names the dtype of its own checkpoint. With that dtype, only this part would be in
    bfloat16.

    Raises:
        UserError: for a family whose decoder layers are not known to fit pre-fusion.
    """
    check_family(text_config)
    return AutoModelForCausalLM.from_config(text_config, dtype=torch.get_default_dtype())


def build_decoder_layers(
    text_config: PreTrainedConfig, num_layers: int
) -> tuple[nn.ModuleList, nn.Module, PreTrainedConfig]:
    """Return `num_layers` decoder layers of the language model's class, its rotary embedding, and the config they read.

    The vocabulary is cut to one entry, so that no embedding table of a large model is allocated and thrown away. Layers
    of pre-fusion use full attention, even where the language model uses a sliding window: their sequence is one frame.

    Raises:
        UserError: for a family whose decoder layers are not known to fit pre-fusion.
    """
    check_family(text_config)
    fields = text_config.to_dict()
    for unfit in ("layer_types", "architectures", "model_type", "max_window_layers", "use_sliding_window"):
        fields.pop(unfit, None)
    if "sliding_window" in fields:
        fields["sliding_window"] = None
    fields.update(num_hidden_layers=num_layers, vocab_size=1, pad_token_id=None, bos_token_id=None, eos_token_id=None)
    config = type(text_config)(**fields)
    config._attn_implementation = text_config._attn_implementation
    decoder = AutoModel.from_config(config, dtype=torch.get_default_dtype())
    return decoder.layers, decoder.rotary_emb, config


def head_dim(text_config: PreTrainedConfig) -> int:
    """Number of channels of an attention head; not every family's config contains it."""
    named = text_config.to_dict().get("head_dim")
    return int(named or text_config.hidden_size // text_config.num_attention_heads)


def check_family(text_config: PreTrainedConfig) -> None:
    """Raises UserError for a family whose decoder layers are not known to fit pre-fusion."""
    if text_config.model_type not in FAMILIES:
        raise UserError(f"language model of type {text_config.model_type!r}: allowed are {', '.join(FAMILIES)}")
