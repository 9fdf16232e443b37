"""PEFT over the whole model, as its users call it: tuners train, merge and come back from their folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AdaptionPromptConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from transformers import AutoModelForImageTextToText

Factory = Callable[..., Any]
CAUSAL: dict[str, Any] = {"task_type": "CAUSAL_LM"}
TARGETS = {"target_modules": ["q_proj", "v_proj"], **CAUSAL}
TUNERS: dict[str, Callable[[], Any]] = {
    "LoRA": lambda: LoraConfig(r=2, **TARGETS),
    "LoRA everywhere": lambda: LoraConfig(r=2, target_modules="all-linear", **CAUSAL),
    "LoRA of the head": lambda: LoraConfig(r=2, target_modules=["lm_head"], **CAUSAL),
    "DoRA": lambda: LoraConfig(r=2, use_dora=True, **TARGETS),
    "whole parts beside": lambda: LoraConfig(r=2, modules_to_save=["projector", "lm_head", "embed_tokens"], **TARGETS),
    "some tokens beside": lambda: LoraConfig(r=2, trainable_token_indices=[5, 6], **TARGETS),
    "IA3": lambda: IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], **CAUSAL
    ),
    "LoHa": lambda: LoHaConfig(r=2, **TARGETS),
    "OFT": lambda: OFTConfig(oft_block_size=4, **TARGETS),
    "VeRA": lambda: VeraConfig(r=2, target_modules=["q_proj"], **CAUSAL),
    "norms": lambda: LNTuningConfig(target_modules=["input_layernorm"], **CAUSAL),
}
GREEDY = {"do_sample": False, "max_new_tokens": 3}


@pytest.fixture
def batch(make_model: Factory, make_sample: Factory, collate: Factory) -> dict[str, Any]:
    return collate(make_model(), [make_sample(1), make_sample(2, frames=2)])


@pytest.mark.parametrize("name", TUNERS)
def test_a_tuner_trains_all_of_its_own_and_merges(make_model: Factory, batch: dict[str, Any], name: str) -> None:
    """All but what stands behind the vision tower's layer that is read, as in transformers' LLaVA."""
    model = make_model()
    expected = model(**batch).loss
    adapted = get_peft_model(model, TUNERS[name]()).train()
    torch.testing.assert_close(adapted(**batch).loss, expected)
    adapted(**batch).loss.backward()
    optimizer = torch.optim.SGD([each for each in adapted.parameters() if each.requires_grad], lr=0.1)
    idle = {each for each, tensor in adapted.named_parameters() if tensor.requires_grad and tensor.grad is None}
    assert {each for each in idle if "vision_tower.encoder.layers.2" not in each} == set()
    optimizer.step()
    adapted.eval()
    with torch.no_grad():
        logits = adapted(**batch).logits
        assert float(adapted(**batch).loss) < float(expected)
        merged = adapted.merge_and_unload()
        assert type(merged) is type(model) and not any("lora" in each for each, _ in merged.named_parameters())
        torch.testing.assert_close(merged(**batch).logits, logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_merged_model_is_saved_whole_and_without_its_adapter(make_model: Factory, batch: Any, tmp_path: Path) -> None:
    """PEFT's issue 1381: a merged folder with adapter files in it was loaded as base and adapter."""
    merged = get_peft_model(make_model(), LoraConfig(r=2, init_lora_weights=False, **TARGETS)).merge_and_unload()
    merged.eval().save_pretrained(tmp_path)
    assert not list(tmp_path.glob("adapter*"))
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(**batch).logits, merged(**batch).logits)


@pytest.mark.parametrize("kind", ["module", "model"])
def test_checkpointing_changes_no_gradient(make_model: Factory, batch: dict[str, Any], kind: str) -> None:
    """Switched on in the base, or through PEFT's model."""
    found = []
    for checkpointing in (False, True):
        adapted = get_peft_model(make_model(), LoraConfig(r=2, init_lora_weights=False, **TARGETS)).train()
        torch.manual_seed(0)
        for each in adapted.parameters():
            if each.requires_grad:
                torch.nn.init.normal_(each, std=0.1)
        if checkpointing:
            reentrant = {"use_reentrant": False}
            (adapted if kind == "model" else adapted.get_base_model()).gradient_checkpointing_enable(reentrant)
            adapted.enable_input_require_grads()
        adapted(**batch).loss.backward()
        found.append({name: each.grad for name, each in adapted.named_parameters() if each.grad is not None})
    assert found[0].keys() == found[1].keys() and len(found[0]) > 20
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


def test_a_prefix_trains_and_answers(make_model: Factory, make_sample: Factory, collate: Factory, batch: Any) -> None:
    """Its keys and values stand in the cache before the text, frames and all."""
    adapted = get_peft_model(make_model(), PrefixTuningConfig(num_virtual_tokens=3, **CAUSAL)).train()
    adapted(**batch).loss.backward()
    (prefix,) = [each for each in adapted.parameters() if each.requires_grad]
    assert bool(prefix.grad.any())
    prompt = collate(make_model(), [make_sample(1)], answers=False)
    said = adapted.eval().generate(**prompt, **GREEDY)
    length = prompt["input_ids"].shape[1]
    whole = {**prompt, "input_ids": said[:, :-1], "attention_mask": torch.ones_like(said[:, :-1])}
    seen = torch.zeros_like(whole["input_ids"]).index_fill(1, torch.arange(length), 1)
    with torch.no_grad():
        logits = adapted(**whole, instruction_mask=seen).logits
    assert torch.equal(logits[:, length - 1 :].argmax(-1), said[:, length:])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PromptTuningConfig, "prompt tuning and p-tuning"),
        (PromptEncoderConfig, "prompt tuning and p-tuning"),
        (AdaptionPromptConfig, "'llava_mini'"),
    ],
)
def test_prompts_of_embeddings_are_refused(make_model: Factory, batch: Any, config: Any, message: str) -> None:
    given = {"adapter_len": 3, "adapter_layers": 1} if config is AdaptionPromptConfig else {"num_virtual_tokens": 3}
    with pytest.raises(ValueError, match=message) as refused:
        get_peft_model(make_model(), config(**given, **CAUSAL))(**batch)
    assert "\n" not in str(refused.value)


def test_adapters_come_back_from_their_folder(make_model: Factory, batch: dict[str, Any], tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "model")
    base = AutoModelForImageTextToText.from_pretrained(tmp_path / "model").eval()
    adapted = get_peft_model(base, LoraConfig(r=2, init_lora_weights=False, **TARGETS)).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "model")
    with torch.no_grad():
        expected = adapted(**batch).logits
        again = PeftModel.from_pretrained(make_model(), tmp_path / "adapter").eval()
        assert torch.equal(again(**batch).logits, expected)
        whole = AutoModelForImageTextToText.from_pretrained(tmp_path / "adapter").eval()  # transformers finds the base
        assert torch.equal(whole(**batch).logits, expected)
        plain = make_model()
        plain.load_adapter(str(tmp_path / "adapter"))
        assert torch.equal(plain.eval()(**batch).logits, expected)
