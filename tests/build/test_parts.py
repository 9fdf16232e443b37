"""A model from a vision tower and a language model that lie in folders, as `model.weights=hub` makes it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from llava_mini import build
from llava_mini.errors import UserError

Resolve = Callable[..., dict[str, Any]]
VISION = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=64,
              patch_size=8)  # fmt: skip


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, Any]:
    """CLIP, and Qwen2 with tied embeddings and more rows than the tokenizer has words."""
    text = AutoConfig.for_model(
        "qwen2", vocab_size=80, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=None,
        max_position_embeddings=512,
    )  # fmt: skip
    tower, language_model = CLIPVisionModel(CLIPVisionConfig(**VISION)), AutoModelForCausalLM.from_config(text)
    tower.save_pretrained(tmp_path / "tower")
    language_model.save_pretrained(tmp_path / "text")
    return {"tower": tower, "text": language_model}


@pytest.fixture
def from_parts(config_of: Resolve, tmp_path: Path) -> Resolve:
    """from_parts("key=value", ...): a config whose parts say their shapes themselves."""

    def make(*overrides: str) -> dict[str, Any]:
        hub = f"model.hub={{vision_tower: {tmp_path / 'tower'}, language_model: {tmp_path / 'text'}}}"
        config = config_of("model.weights=hub", hub, *overrides)
        return {
            **config,
            "model": {**config["model"], "vision_feature_layer": -2, "vision_config": {}, "text_config": {}},
        }

    return make


@torch.no_grad()
def test_parts_are_taken_over_and_the_rest_is_new(parts: dict[str, Any], from_parts: Resolve, tmp_path: Path) -> None:
    config = from_parts()
    tokenizer = build.build_tokenizer(config)
    build.seed_run(config)
    build.check_model(config)
    model = build.build_model(config, tokenizer)
    for part, source in ((model.vision_tower, parts["tower"]), (model.language_model, parts["text"])):
        state = source.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in part.state_dict().items())
    layers = model.language_model.get_decoder().layers
    assert torch.equal(model.prefusion.layers[1].mlp.up_proj.weight, layers[1].mlp.up_proj.weight)  # fusion.init=copy
    assert torch.equal(model.compressor.attention.out_proj.weight, torch.eye(32))
    assert 0.01 < model.projector.linear_1.weight.std() < 0.03 and model.projector.linear_1.bias.abs().max() == 0
    rotary = model.prefusion.rotary_emb.inv_freq
    assert torch.equal(rotary, model.language_model.get_decoder().rotary_emb.inv_freq)
    assert model.config.text_config is model.language_model.config
    assert all(not tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    processor = build.build_processor(config, model, tokenizer)
    inputs = processor(images=torch.zeros(64, 64, 3).byte().numpy(), text="<image> what color <answer>")
    expected = model.eval()(**inputs).logits
    assert torch.isfinite(expected).all()
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(again(**inputs).logits, expected)
    assert again.language_model.lm_head.weight is again.get_input_embeddings().weight


@pytest.mark.usefixtures("parts")
def test_the_new_parts_follow_the_seed_and_the_type(from_parts: Resolve) -> None:
    config = from_parts("fusion.init=random")
    tokenizer, made = build.build_tokenizer(config), []
    for seed in (0, 0, 1):
        build.seed_run({**config, "seed": seed})
        made.append(build.build_model(config, tokenizer, dtype=torch.bfloat16))
    assert {parameter.dtype for parameter in made[0].parameters()} == {torch.bfloat16}
    first, same, other = (model.prefusion.layers[0].mlp.up_proj.weight for model in made)
    assert torch.equal(first, same) and not torch.equal(first, other)


@pytest.mark.usefixtures("parts")
def test_meta_needs_no_weights(from_parts: Resolve, tmp_path: Path) -> None:
    config = from_parts()
    tokenizer = build.build_tokenizer(config)
    (tmp_path / "text" / "model.safetensors").unlink()
    model = build.build_model(config, tokenizer, device="meta")
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.config.text_config.hidden_size == 48


@torch.no_grad()
def test_the_tower_alone(parts: dict[str, Any], from_parts: Resolve) -> None:
    config = from_parts()
    model = build.build_vision_model(config, build.build_tokenizer(config))
    state = parts["tower"].state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.vision_tower.state_dict().items())
    assert all(parameter.is_meta for parameter in model.language_model.parameters())


@pytest.mark.usefixtures("parts")
def test_a_preset_that_says_something_else_is_refused(from_parts: Resolve) -> None:
    config = from_parts()
    tokenizer = build.build_tokenizer(config)
    config["model"]["text_config"] = {"model_type": "qwen2", "num_hidden_layers": 3}
    assert build.build_model(config, tokenizer).config.text_config.hidden_size == 48  # what it does not say
    config["model"]["text_config"] = {"model_type": "qwen2", "hidden_size": 64, "vocab_size": 80}
    with pytest.raises(UserError, match=r"model\.text_config\.hidden_size=64: \S+/text has 48") as caught:
        build.build_model(config, tokenizer)
    assert "\n" not in str(caught.value)


def test_weights_in_several_files_are_loaded(config_of: Resolve, model_of: Any, tmp_path: Path) -> None:
    source = model_of(config_of("seed=5"))
    source.save_pretrained(tmp_path / "weights", max_shard_size="100KB")
    assert len(list((tmp_path / "weights").glob("model-*.safetensors"))) > 1
    model = model_of(config_of("seed=6", f"model.weights=[{tmp_path / 'weights'}]", "fusion.init=random"))
    state = source.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
