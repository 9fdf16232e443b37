"""The language model and pre-fusion's layers are built by transformers from one config, for every family that fits."""

import pytest
import torch
from transformers import AutoConfig, GPT2Config

from llava_mini.errors import UserError
from llava_mini.models.language_model import FAMILIES, build_decoder_layers, build_language_model

FAMILY = pytest.mark.parametrize("family", FAMILIES)


@FAMILY
def test_layers_are_of_the_language_models_own_class(make_text_config, family: str) -> None:
    config = make_text_config(family)
    model = build_language_model(config)
    layers, _, _ = build_decoder_layers(config, 2)
    assert len(layers) == 2
    for layer, own in zip(layers, model.get_decoder().layers, strict=False):
        assert type(layer) is type(own)
        layer.load_state_dict(own.state_dict())  # the same names and shapes


@FAMILY
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_layers_attend_as_the_language_model_does(make_text_config, family: str, implementation: str) -> None:
    config = make_text_config(family)
    config._attn_implementation = implementation
    layers, _, _ = build_decoder_layers(config, 1)
    assert layers[0].self_attn.config._attn_implementation == implementation
    assert build_language_model(config).config._attn_implementation == implementation


@FAMILY
def test_no_layer_at_all(make_text_config, family: str) -> None:
    assert len(build_decoder_layers(make_text_config(family), 0)[0]) == 0


def test_rotary_scaling_is_kept(make_text_config) -> None:
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    config = make_text_config(rope_parameters=rope)
    _, rotary, _ = build_decoder_layers(config, 1)
    _, plain, _ = build_decoder_layers(make_text_config(), 1)
    position = torch.arange(9)[None]
    scaled, unscaled = rotary(torch.zeros(1), position)[0], plain(torch.zeros(1), position)[0]
    torch.testing.assert_close(scaled[:, 4], unscaled[:, 1])  # factor 4: position 4 turns as far as position 1
    model = build_language_model(config)
    assert torch.equal(model.get_decoder().rotary_emb.inv_freq, rotary.inv_freq)


def test_prefusion_attends_fully_where_the_language_model_slides(make_text_config) -> None:
    mistral = make_text_config("mistral", sliding_window=2)
    assert build_decoder_layers(mistral, 1)[2].sliding_window is None and mistral.sliding_window == 2
    config = AutoConfig.for_model(
        "qwen2", vocab_size=99, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        use_sliding_window=True, sliding_window=2, max_window_layers=0,
    )  # fmt: skip
    layers, _, _ = build_decoder_layers(config, 2)
    assert [layer.self_attn.sliding_window for layer in layers] == [None, None]
    assert config.sliding_window == 2 and "sliding_attention" in config.layer_types  # the caller's config is untouched


def test_the_vocabulary_is_not_built_twice(make_text_config) -> None:
    config = make_text_config(vocab_size=10**12)  # a table of that many rows fits in no memory
    assert len(build_decoder_layers(config, 1)[0]) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_have_the_dtype_in_force_whatever_the_config_remembers(make_text_config, dtype: str) -> None:
    """A config of a published model names its checkpoint's dtype; parts in different dtypes cannot work together."""
    config = make_text_config(dtype=dtype)
    assert build_language_model(config).dtype == torch.float32
    assert build_decoder_layers(config, 1)[0][0].mlp.up_proj.weight.dtype == torch.float32


def test_family_that_does_not_fit() -> None:
    for build in (build_language_model, lambda config: build_decoder_layers(config, 1)):
        with pytest.raises(UserError, match="'gpt2': allowed are llama, mistral, qwen2"):
            build(GPT2Config())
