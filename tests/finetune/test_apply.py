"""What is adapted, quantized, frozen and cast, and that nothing else changes."""

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import peft.tuners.lora
import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from tests.refusals import refuses
from torch import nn

from llava_mini import finetune
from llava_mini.finetune.adapters import TARGETS
from llava_mini.finetune.quantization import nf4_linear, rounded_linear
from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.settings import FULL

Factory = Callable[..., Any]
IN_32 = {"compute_dtype": torch.float32, "frozen_dtype": None}


def trained_names(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**inputs).logits


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize(("quantize", "dora"), [(None, False), ("nf4", False), (None, True), ("nf4", True)])
def test_adapters_are_on_the_decoders_linears_and_on_no_others(
    make_model: Factory, make_text_config: Factory, spec_of: Factory, family: str, quantize: str | None, dora: bool
):
    model = make_model(text_config=make_text_config(family))
    finetune.apply(model, spec_of({"dora": dora}, quantize=quantize, prefusion="lora"), **IN_32)
    expected = peft.tuners.lora.bnb.Linear4bit if quantize else peft.tuners.lora.Linear
    adapted = {n: m for n, m in model.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    assert {name.split(".")[-1] for name in adapted} == set(TARGETS)
    parts = {part: [m for n, m in adapted.items() if n.startswith(part)] for part in ("language_model", "prefusion")}
    assert [len(layers) for layers in parts.values()] == [3 * 7, 2 * 7] and len(adapted) == 5 * 7
    assert {type(layer) for layer in parts["language_model"]} == {expected}
    assert {type(layer) for layer in parts["prefusion"]} == {peft.tuners.lora.Linear}
    packed = {n for n, m in model.named_modules() if isinstance(m, Linear4bit)}
    assert len(packed) == (21 if quantize else 0) and all(".layers." in name for name in packed)
    assert isinstance(model.language_model.lm_head, nn.Linear) and not isinstance(
        model.language_model.lm_head, Linear4bit
    )


def test_with_adapters_only_they_train_in_their_part(make_model: Factory, spec_of: Factory):
    for prefusion in ("full", "lora"):
        model = make_model()
        finetune.apply(model, spec_of(prefusion=prefusion, quantize="nf4"), **IN_32)
        names = trained_names(model)
        for part, adapters_only in (("language_model", True), ("prefusion", prefusion == "lora")):
            own = {name for name in names if name.startswith(part)}
            assert own and all("lora_" in name for name in own) == adapters_only
        assert not any(name.startswith("vision_tower") for name in names)
        assert {n for n, _ in model.projector.named_parameters("projector")} < names
        assert {p.dtype for n, p in model.named_parameters() if n in names} == {torch.float32}


def test_a_frozen_language_model_trains_nothing_of_it(make_model: Factory, spec_of: Factory):
    model = make_model()
    finetune.apply(model, replace(FULL, language_model="frozen"), **IN_32)
    assert {name.split(".")[0] for name in trained_names(model)} == {"projector", "compressor", "prefusion"}


def test_full_changes_no_weight_and_trains_all_but_the_tower(make_model: Factory):
    model, plain = make_model(), make_model()
    finetune.apply(model, FULL, **IN_32)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert {name.split(".")[0] for name, p in model.named_parameters() if not p.requires_grad} == {"vision_tower"}


def test_fresh_adapters_add_nothing_and_nf4_little(
    make_model: Factory, make_sample: Factory, collate: Factory, spec_of: Factory
):
    plain = make_model()
    inputs = collate(plain, [make_sample(1), make_sample(2)])
    expected = logits(plain, inputs)
    for dora in (False, True):
        adapted = make_model()
        finetune.apply(adapted, spec_of({"dora": dora}, prefusion="lora"), **IN_32)
        torch.testing.assert_close(logits(adapted, inputs), expected, rtol=1e-5, atol=1e-5)
    packed = make_model()
    finetune.apply(packed, spec_of(quantize="nf4"), **IN_32)
    difference = (logits(packed, inputs) - expected).std() / expected.std()
    # 4 bits of normal numbers err by a tenth of their size; through three layers that stays below a half.
    assert 0.01 < difference < 0.5


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(48, 64), (30, 50)])
def test_a_packed_layer_takes_half_a_byte_a_weight_and_rounds_once(bias: bool, shape: tuple[int, int]):
    torch.manual_seed(0)
    linear = nn.Linear(*shape, bias=bias)
    packed, rounded = nf4_linear(linear, torch.float32), rounded_linear(linear, torch.float32)
    count = shape[0] * shape[1]
    assert packed.weight.dtype == torch.uint8 and packed.weight.numel() == count // 2
    assert packed.weight.quant_state.nested and packed.weight.quant_state.quant_type == "nf4"
    assert packed.weight.quant_state.blocksize == 64
    x = torch.randn(5, shape[0])
    torch.testing.assert_close(packed(x), rounded(x), rtol=1e-5, atol=1e-6)
    error = (rounded.weight - linear.weight).abs()
    # Half the widest gap between NF4's codes is 0.152 of a block's largest weight; scales in 8 bits add to that.
    assert 0 < error.max() <= 0.2 * linear.weight.abs().max()
    assert linear.weight.dtype == torch.float32 and not rounded.weight.requires_grad
    twice = rounded_linear(rounded, torch.float32)
    torch.testing.assert_close(twice.weight, rounded.weight, rtol=0.02, atol=1e-3)


def test_a_packed_layer_keeps_its_bits_in_evaluation(make_model: Factory, spec_of: Factory):
    model = make_model()
    finetune.apply(model, spec_of(quantize="nf4"), **IN_32)
    layers = [m for m in model.modules() if isinstance(m, Linear4bit)]
    before = [layer.weight.detach().clone() for layer in layers]
    logits(model, {"input_ids": torch.arange(3, 9)[None]})
    assert all(torch.equal(layer.weight, kept) for layer, kept in zip(layers, before, strict=True))
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_frozen_weights_are_cast_and_trained_ones_and_buffers_are_not(
    make_model: Factory, spec_of: Factory, dtype: torch.dtype
):
    model = make_model()
    finetune.apply(model, spec_of(prefusion="lora"), compute_dtype=dtype, frozen_dtype=dtype)
    found = {(p.requires_grad, p.dtype) for p in model.parameters()}
    assert found == {(True, torch.float32), (False, dtype)}
    assert model.prefusion.rotary_emb.inv_freq.dtype == torch.float32
    model.projector.requires_grad_(False)
    finetune.cast_frozen(model, dtype)
    assert {p.dtype for p in model.projector.parameters()} == {dtype}


def test_mixed_precision_trains_over_half_precision_weights(
    make_model: Factory, make_sample: Factory, collate: Factory, spec_of: Factory
):
    for quantize in (None, "nf4"):
        model = make_model()
        half = {"compute_dtype": torch.bfloat16, "frozen_dtype": torch.bfloat16}
        finetune.apply(model, spec_of(quantize=quantize), **half)
        with torch.autocast("cpu", torch.bfloat16):
            model.train()(**collate(model, [make_sample(1)])).loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad and "lora_A" not in n}
        assert all(gradient is not None and gradient.any() for gradient in gradients.values())
        assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}


def test_a_model_without_memory_is_adapted_with_a_stand_in(make_config: Factory, spec_of: Factory):
    class Packed(nn.Linear):
        """What a planner puts in the place of a 4-bit layer."""

        def __init__(self, linear: nn.Linear):
            super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
            size = linear.weight.numel() // 2
            self.weight = nn.Parameter(torch.empty(size, 1, dtype=torch.uint8, device="meta"), requires_grad=False)

    with torch.device("meta"):
        model = LlavaMiniForConditionalGeneration(make_config())
    counted = finetune.num_parameters(model)
    finetune.apply(
        model,
        spec_of(quantize="nf4", prefusion="lora"),
        compute_dtype=torch.bfloat16,
        frozen_dtype=torch.bfloat16,
        linear_4bit=lambda linear, _dtype: Packed(linear),
    )
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert finetune.num_parameters(model) == counted


def test_parameters_are_counted_as_the_weights_they_stand_for(make_model: Factory, spec_of: Factory):
    plain = sum(p.numel() for p in make_model().parameters())
    for changes in ({}, {"quantize": "nf4"}, {"prefusion": "lora", "quantize": "nf4"}):
        model = make_model()
        finetune.apply(model, spec_of(**changes), **IN_32)
        assert finetune.num_parameters(model) == plain


def test_no_layer_of_prefusion_no_adapter(make_model: Factory, spec_of: Factory):
    model = make_model(num_fusion_layers=0)
    finetune.apply(model, spec_of(prefusion="lora"), **IN_32)
    assert finetune.adapted_parts(model, spec_of(prefusion="lora")) == ["language_model"]


@pytest.mark.parametrize(
    ("precision", "dtype"), [("16-mixed", torch.float16), ("bf16-true", torch.bfloat16), ("32-true", torch.float32)]
)
def test_4_bit_layers_compute_in_the_runs_precision(precision: str, dtype: torch.dtype):
    assert finetune.compute_dtype(precision) == dtype


def test_a_missing_package_is_one_line(make_model: Factory, spec_of: Factory, monkeypatch: pytest.MonkeyPatch):
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    models = [make_model(), make_model()]
    monkeypatch.setattr(importlib, "import_module", absent)
    with refuses("finetune.lora"):
        finetune.apply(models[0], spec_of(), **IN_32)
    with refuses("finetune.quantize", "nf4"):
        finetune.apply(models[1], spec_of(quantize="nf4"), **IN_32)
