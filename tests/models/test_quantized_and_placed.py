"""A model that transformers loads in few bits, on devices of its choice, half on a disk, or in a type by any name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from tests.refusals import refuses
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

Factory = Callable[..., Any]
GREEDY = {"do_sample": False, "max_new_tokens": 4}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}


@pytest.fixture(scope="module")
def model(make_model: Factory) -> Any:
    return make_model()


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    return path


@pytest.fixture
def batch(model: Any, make_sample: Factory, collate: Factory) -> dict[str, Any]:
    return collate(model, [make_sample(1), make_sample(2, frames=2)], padding_side="left", answers=False)


@pytest.fixture(autouse=True)
def _no_other_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CPUs with bf16 instructions bitsandbytes packs weights again, which fails for layers narrower than a block."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, **options).eval()


@pytest.mark.parametrize("bits", [NF4, {"load_in_8bit": True}], ids=["4", "8"])
@torch.no_grad()
def test_few_bits_are_close(model: Any, folder: Path, batch: dict[str, Any], bits: Any, tmp_path: Path) -> None:
    """Every linear layer but the head is packed; 4 bits of weights this small and random are a coarse model."""
    packed = load(folder, quantization_config=BitsAndBytesConfig(**bits))
    kinds = {type(packed.get_submodule(name)).__name__ for name, _ in model.named_modules() if name.endswith("k_proj")}
    assert len(kinds) == 1 and kinds < {"Linear4bit", "Linear8bitLt"}
    for part in ("vision_tower.encoder.layers.0.mlp.fc1", "projector.linear_1", "prefusion.layers.0.mlp.up_proj"):
        assert type(packed.get_submodule(part)).__name__ in kinds
    assert packed.dtype == torch.float32
    expected, found = (each(**batch).logits[batch["attention_mask"].bool()] for each in (model, packed))
    likeness = torch.nn.functional.cosine_similarity(found.float(), expected, dim=-1).mean()
    assert likeness > (0.8 if bits == NF4 else 0.99), likeness  # random weights differ between kinds of CPUs
    assert packed.generate(**batch, **GREEDY).shape == model.generate(**batch, **GREEDY).shape
    packed.save_pretrained(tmp_path)
    torch.testing.assert_close(load(tmp_path)(**batch).logits[batch["attention_mask"].bool()], found)


def test_adapters_train_over_few_bits(model: Any, folder: Path, make_sample: Factory, collate: Factory) -> None:
    """As PEFT's guide to QLoRA says, with its checkpointing."""
    packed = prepare_model_for_kbit_training(load(folder, quantization_config=BitsAndBytesConfig(**NF4)))
    adapted = get_peft_model(packed, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")).train()
    batch = collate(model, [make_sample(1), make_sample(2, frames=2)])
    adapted(**batch).loss.backward()
    trained = {name for name, each in adapted.named_parameters() if each.grad is not None and "lora_B" in name}
    for part in ("compressor.attention.out_proj", "projector.linear_2", "prefusion.layers.1", "language_model.model"):
        assert any(part in name for name in trained), part


def test_devices_are_chosen_by_accelerate(model: Any, folder: Path, batch: dict[str, Any], tmp_path: Path) -> None:
    """On this machine all go to the CPU; with too little memory for that, layers wait on the disk."""
    expected = model.generate(**batch, **GREEDY)
    assert torch.equal(load(folder, device_map="auto").generate(**batch, **GREEDY), expected)
    for size in (50_000, 400_000):  # everything, and the language model's layers alone
        placed = load(folder, device_map="auto", max_memory={"cpu": size}, offload_folder=str(tmp_path / str(size)))
        assert "disk" in placed.hf_device_map.values()
        assert torch.equal(placed.generate(**batch, **GREEDY), expected)


@pytest.mark.parametrize("given", [{"dtype": "bfloat16"}, {"dtype": torch.bfloat16}, {"torch_dtype": "bfloat16"}])
def test_a_type_by_any_name(folder: Path, given: dict[str, Any]) -> None:
    half = load(folder, **given)
    assert half.dtype == torch.bfloat16 == next(half.vision_tower.parameters()).dtype


def test_a_type_that_there_is_not(folder: Path) -> None:
    for name in ("bf17", "nn"):
        with refuses("dtype", name, "float32, bfloat16, float16 and auto"):
            load(folder, dtype=name)


@pytest.mark.parametrize("name", ["flash_attention_2", "flex_attention", "paged|eager", "quick"])
def test_attention_that_takes_no_masks_of_ours(make_model: Factory, folder: Path, name: str) -> None:
    with refuses("attn_implementation", name, "sdpa and eager"):
        load(folder, attn_implementation=name)
    with refuses("attn_implementation", name, "sdpa and eager"):
        make_model().set_attn_implementation(name)
    mixed = load(folder, attn_implementation={"vision_config": "eager"})
    assert mixed.vision_tower.config._attn_implementation == "eager"
    assert mixed.prefusion.config._attn_implementation == "sdpa"
