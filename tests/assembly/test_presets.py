"""Every preset of a real model: it composes, and its shape on meta has as many parameters as the published model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.refusals import refuses
from transformers import AutoConfig

from llava_mini import assembly
from llava_mini.config import Config, options, resolve
from llava_mini.errors import UserError
from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.models.interop.parts import check_same

LANGUAGE_MODELS = {  # parameters, as the models' cards say or their index files sum up to
    "llava_mini_vicuna_7b": 6_738_415_616,
    "llava_mini_vicuna_13b": 13_015_864_320,
    "llava_mini_llama31_8b": 8_030_261_248,
    "llava_mini_mistral_7b": 7_241_732_096,
    "llava_mini_qwen25_0_5b": 494_032_768,
    "llava_mini_qwen25_1_5b": 1_543_714_304,
    "llava_mini_tinyllama_1_1b": 1_100_048_384,
}
CLIP_LARGE = 303_507_456


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def on_meta(*overrides: str) -> tuple[Config, LlavaMiniForConditionalGeneration]:
    config = resolve([*overrides])
    return config, assembly.build_model(config, assembly.build_tokenizer(config), device="meta")


def test_no_preset_is_left_out() -> None:
    assert sorted([*LANGUAGE_MODELS, "parts", "tiny"]) == options("model")


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_preset_has_the_published_models_shape(name: str) -> None:
    config, model = on_meta(f"model={name}", "model.weights=random")
    assert config.model.language_model == config.model.tokenizer
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert count(model.language_model) == LANGUAGE_MODELS[name]
    assert count(model.vision_tower) == CLIP_LARGE
    assert model.side**2 == 576 and model.layout.frame() == 1
    text = model.config.text_config
    assert len(model.prefusion.layers) == 4
    assert model.config.image_token_id == text.vocab_size  # behind the vocabulary: it is never embedded
    assembly.check_model(config)


LLAMA_2 = dict(vocab_size=32000, bos_token_id=1, eos_token_id=2, rms_norm_eps=1e-5, rope_theta=10000.0)
QWEN = dict(vocab_size=151936, bos_token_id=151643, eos_token_id=151645, rms_norm_eps=1e-6, rope_theta=1e6,
            tie_word_embeddings=True, max_position_embeddings=32768, pad_token_id=None)  # fmt: skip
LLAMA_3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
PUBLISHED: dict[str, dict[str, Any]] = {  # facts of config.json; conf/model says where each was found
    "llava_mini_vicuna_7b": {**LLAMA_2, "pad_token_id": 0, "max_position_embeddings": 4096},
    "llava_mini_vicuna_13b": {**LLAMA_2, "pad_token_id": 0, "max_position_embeddings": 4096},
    "llava_mini_tinyllama_1_1b": {**LLAMA_2, "pad_token_id": None, "max_position_embeddings": 2048},
    "llava_mini_mistral_7b": {**LLAMA_2, "rope_theta": 1e6, "sliding_window": None, "max_position_embeddings": 32768},
    "llava_mini_llama31_8b": dict(
        vocab_size=128256, bos_token_id=128000, eos_token_id=[128001, 128008, 128009], rms_norm_eps=1e-5,
        rope_theta=500000.0, rope_scaling={**LLAMA_3, "rope_type": "llama3"}, max_position_embeddings=131072,
    ),
    "llava_mini_qwen25_0_5b": QWEN,
    "llava_mini_qwen25_1_5b": QWEN,
}  # fmt: skip


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_preset_says_what_the_published_config_says(name: str) -> None:
    """Read by transformers, which keeps rotary fields of all times in one."""
    preset = resolve([f"model={name}"]).model.text_config
    fields = {key: value for key, value in preset.items() if key not in PUBLISHED[name] and key != "rope_parameters"}
    published = AutoConfig.for_model(**{"tie_word_embeddings": False, **fields, **PUBLISHED[name]})
    check_same(preset, published, "text_config", name)


def test_rotary_scaling_and_vocabulary_are_the_published_ones() -> None:
    _, llama = on_meta("model=llava_mini_llama31_8b", "model.weights=random")
    rope = llama.config.text_config.rope_parameters
    assert (rope["rope_type"], rope["rope_theta"], rope["factor"]) == ("llama3", 500_000, 8)
    assert llama.config.text_config.eos_token_id == [128001, 128008, 128009]
    _, mistral = on_meta("model=llava_mini_mistral_7b", "model.weights=random")
    assert mistral.config.text_config.rope_parameters["rope_theta"] == 1_000_000
    assert mistral.config.text_config.sliding_window is None
    _, qwen = on_meta("model=llava_mini_qwen25_0_5b", "model.weights=random")
    assert qwen.language_model.lm_head.weight is qwen.language_model.model.embed_tokens.weight
    assert set(qwen.config.text_config.layer_types) == {"full_attention"}


def test_processor_cuts_336_pixels_and_finds_the_placeholder() -> None:
    """With the stand-in tokenizer too: a run with random weights is a run."""
    config, model = on_meta("model=llava_mini_qwen25_0_5b", "model.weights=random")
    tokenizer = assembly.build_tokenizer(config)
    processor = assembly.build_processor(config, model, tokenizer)
    inputs = processor(images=torch.zeros(400, 340, 3).byte().numpy(), text="<image> what <answer>")
    assert inputs["pixel_values"].shape == (1, 1, 3, 336, 336)
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 1
    assert int(inputs["input_ids"][0, -1]) < model.config.text_config.vocab_size


def test_small_random_preset_answers_on_the_cpu(config_of: Callable[..., Config]) -> None:
    """The same values with fewer layers and narrower ones: what a preset says works as a whole."""
    changes = [
        "text_config.hidden_size=56", "text_config.intermediate_size=64", "text_config.num_hidden_layers=4",
        "vision_config.hidden_size=32", "vision_config.intermediate_size=64", "vision_config.num_hidden_layers=2",
        "text_config.vocab_size=500", "text_config.eos_token_id=1", "text_config.bos_token_id=0",
        "weights=random", "tokenizer=Qwen/Qwen2.5-0.5B-Instruct",
    ]  # fmt: skip
    config = resolve(["model=llava_mini_qwen25_0_5b", *(f"model.{change}" for change in changes)])
    tokenizer = assembly.build_tokenizer(config)
    model = assembly.build_model(config, tokenizer, dtype=torch.bfloat16).eval()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    processor = assembly.build_processor(config, model, tokenizer)
    inputs = processor(images=torch.zeros(336, 336, 3).byte().numpy(), text="<image> what <answer>")
    with torch.no_grad():
        assert torch.isfinite(model(**{**inputs, "pixel_values": inputs["pixel_values"].bfloat16()}).logits).all()


def test_a_tokenizer_that_has_more_tokens_than_rows_is_refused(tokenizer_dir: Any) -> None:
    changes = [f"model.tokenizer={tokenizer_dir}", "model.text_config.vocab_size=20", "model.weights=random"]
    with pytest.raises(UserError, match=r"tokens go up to id 61, the language model's vocabulary has 20 rows"):
        assembly.build_tokenizer(resolve(["model=llava_mini_vicuna_7b", *changes]))


def test_without_random_weights_a_missing_tokenizer_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with refuses("model.tokenizer", "no/such"):
        assembly.build_tokenizer(resolve(["model=llava_mini_vicuna_7b", "model.tokenizer=no/such"]))
