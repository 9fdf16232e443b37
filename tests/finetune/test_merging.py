"""What a run with adapters keeps is loaded again and merged into a plain model with the same answers."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_mini import finetune
from llava_mini.errors import UserError
from llava_mini.finetune.quantization import rounded_linear
from llava_mini.settings import FULL, Finetune

Factory = Callable[..., Any]
IN_32 = {"compute_dtype": torch.float32, "frozen_dtype": None}
CASES = [(None, False), (None, True), ("nf4", False), ("nf4", True)]


def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**inputs).logits


@pytest.fixture
def trained(make_model: Factory, stir: Factory, tmp_path: Path) -> Factory:
    """trained(spec, **changes of the model): a model with adapters other than zero, saved in tmp_path/model."""

    def make(spec: Finetune, **changes: Any) -> Any:
        model = make_model(**changes)
        places = {"weights": ["a tower", "a language model"], "language_model": "a language model"}
        base = {**places, "fingerprints": finetune.fingerprints(model), "finetune": asdict(spec)}
        finetune.apply(model, spec, **IN_32)
        stir(model)
        with torch.no_grad():
            model.projector.requires_grad_(True).linear_1.weight.mul_(1.1)
        model.compressor.requires_grad_(False)  # as a stage does
        finetune.save_trained(model, tmp_path / "model", spec, base)
        return model

    return make


@pytest.fixture
def again(make_model: Factory, tmp_path: Path) -> Factory:
    """again(spec, **changes): the same base with what tmp_path/model holds, for merging."""

    def make(spec: Finetune, **changes: Any) -> Any:
        model = make_model(**changes)
        found = finetune.fingerprints(model)
        finetune.apply(model, spec, **IN_32, linear_4bit=rounded_linear)
        model.compressor.requires_grad_(False)
        finetune.load_trained(model, tmp_path / "model", spec, found)
        return model

    return make


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize(("quantize", "dora"), CASES)
def test_the_merged_model_is_plain_and_answers_as_the_adapted_one(
    make_model: Factory, make_text_config: Factory, make_sample: Factory, collate: Factory, spec_of: Factory,
    trained: Factory, again: Factory, family: str, quantize: str | None, dora: bool,
):  # fmt: skip
    text_config = make_text_config(family)
    spec = spec_of({"dora": dora}, quantize=quantize, prefusion="lora")
    adapted, merged = trained(spec, text_config=text_config), again(spec, text_config=text_config)
    finetune.merge_adapters(merged, spec)
    plain = make_model(text_config=text_config)
    inputs = collate(plain, [make_sample(1), make_sample(2)])
    assert {name: type(module) for name, module in merged.named_modules()} == {
        name: type(module) for name, module in plain.named_modules()
    }
    found, expected = logits(merged, inputs), logits(adapted, inputs)
    assert (expected - logits(plain, inputs)).abs().max() > 0.1
    # A base in 4 bits is merged as the rounded numbers that it computes with: no more differs than the order of sums.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


def test_what_is_kept_are_adapters_and_trained_parts(trained: Factory, spec_of: Factory, tmp_path: Path):
    model = trained(spec_of(quantize="nf4"))
    folder = tmp_path / "model"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "base.json", "trained.safetensors", "adapter/adapter_config.json", "adapter/adapter_model.safetensors",
    }  # fmt: skip
    assert {name.split(".")[0] for name in load_file(folder / "trained.safetensors")} == {"projector", "prefusion"}
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert len(adapter) == 2 * 21 and all(".lora_A." in name or ".lora_B." in name for name in adapter)
    base = json.loads((folder / "base.json").read_text())
    assert (
        base["weights"] == ["a tower", "a language model"]
        and base["fingerprints"].keys() == dict(model.named_children()).keys()
    )
    assert base["finetune"]["quantize"] == "nf4"
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "a language model"
    assert config["target_modules"] == sorted(config["target_modules"]), "the same bytes from every process"


def test_peft_itself_loads_the_language_models_adapter(
    make_model: Factory, trained: Factory, spec_of: Factory, tmp_path: Path
):
    adapted = trained(spec_of())
    by_peft = peft.PeftModel.from_pretrained(make_model().language_model, str(tmp_path / "model" / "adapter"))
    ids = torch.arange(3, 12)[None]
    found, expected = logits(by_peft, {"input_ids": ids}), logits(adapted.language_model, {"input_ids": ids})
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_frozen_base_in_4_bits_is_merged_too(
    make_sample: Factory, collate: Factory, trained: Factory, again: Factory
):
    spec = replace(FULL, language_model="frozen", quantize="nf4")
    assert finetune.is_adapted(spec)
    adapted, merged = trained(spec), again(spec)
    finetune.merge_adapters(merged, spec)
    inputs = collate(merged, [make_sample(3)])
    torch.testing.assert_close(logits(merged, inputs), logits(adapted, inputs), rtol=1e-5, atol=2e-5)


def test_another_base_is_refused(trained: Factory, again: Factory, spec_of: Factory):
    trained(spec_of())
    told = r"another base: \w+ has the fingerprint \w+, base.json says \w+ \(weights: a tower, a language model\)"
    with pytest.raises(UserError, match=told):
        again(spec_of(), seed=1)


def test_a_part_that_was_trained_whole_may_have_begun_otherwise(
    make_model: Factory, trained: Factory, spec_of: Factory, tmp_path: Path
):
    kept = trained(spec_of()).projector.linear_1.weight
    model = make_model()
    with torch.no_grad():
        model.projector.linear_1.weight.zero_()
    found = finetune.fingerprints(model)
    finetune.apply(model, spec_of(), **IN_32)
    model.compressor.requires_grad_(False)
    finetune.load_trained(model, tmp_path / "model", spec_of(), found)
    assert torch.equal(model.projector.linear_1.weight, kept)


def test_a_fingerprint_tells_any_other_training_and_shape(make_model: Factory):
    model = make_model()
    before = finetune.fingerprints(model)
    assert before == finetune.fingerprints(make_model())
    with torch.no_grad():
        model.compressor.norm_query.bias.add_(1e-3)
    after = finetune.fingerprints(model)
    assert {part for part in before if before[part] != after[part]} == {"compressor"}


def changed(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """changed("trained.safetensors", change): as if the file had been written with other tensors."""

    def damage(folder: Path) -> None:
        tensors = {key: tensor.clone() for key, tensor in load_file(folder / name).items()}
        change(tensors)
        save_file(tensors, folder / name)

    return damage


TRAINED, ADAPTER = "trained.safetensors", "adapter/adapter_model.safetensors"
BIAS = "projector.linear_1.bias"
LORA_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
NORM, PACKED = "language_model.model.norm.weight", "language_model.model.layers.0.mlp.up_proj.base_layer.weight"
FLOATS = "float64, float32, float16, bfloat16"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "base.json").write_text("{}"), r"base\.json: not what a run with adapters writes"),
        (lambda f: (f / "base.json").unlink(), r"base\.json: cannot be read: No such file or directory"),
        (
            lambda f: (f / "base.json").write_text('{"weights": "parts", "fingerprints": {}}'),
            r"base\.json: not what a run with adapters writes \(weights are names",
        ),
        (
            lambda f: (f / "base.json").write_text('{"weights": ["a"], "fingerprints": {}}'),
            r"base\.json: has fingerprints of no part; needed are those of .*projector",
        ),
        (lambda f: (f / TRAINED).write_text("no"), r"trained\.safetensors: not a readable safetensors"),
        (lambda f: (f / TRAINED).unlink(), r"trained\.safetensors: not a readable safetensors file \(No such file"),
        (lambda f: (f / ADAPTER).unlink(), r"adapter_model\.safetensors: not a readab"),
        (changed(TRAINED, lambda t: t.pop(BIAS)), rf"trained\.safetensors: missing tensors: {BIAS} \["),
        (
            changed(TRAINED, lambda t: t[BIAS].fill_(torch.nan)),
            rf"trained\.safetensors: {BIAS} contains numbers that are n",
        ),
        (
            changed(TRAINED, lambda t: t.update({BIAS: t[BIAS].int()})),
            rf"{BIAS} is stored as int32; allowed are {FLOATS}",
        ),
        (changed(TRAINED, lambda t: t.update({NORM: torch.ones(32)})), rf"ors: unexpected tensors: {NORM} \[32\]$"),
        (changed(TRAINED, lambda t: t.update({PACKED: torch.ones(2)})), rf"ors: unexpected tensors: {PACKED} \[2\]$"),
        (
            changed(TRAINED, lambda t: t.update({BIAS: torch.zeros(2)})),
            rf"misshapen tensors: {BIAS}: shape \[2\], the ",
        ),
        (
            changed(ADAPTER, lambda t: t[LORA_A].fill_(torch.inf)),
            rf"adapter_model\.safetensors: {LORA_A} contains numbers",
        ),
        (changed(ADAPTER, lambda t: t.update({LORA_A: t[LORA_A].int()})), rf"{LORA_A} is stored as int32"),
        (changed(ADAPTER, lambda t: t.pop(LORA_A)), rf"adapter_model\.safetensors: missing tensors: {LORA_A} \["),
        (changed(ADAPTER, lambda t: t.update({"more": torch.ones(1)})), r"unexpected tensors: more \[1\]$"),
    ],
)
def test_what_is_missing_or_spoilt_is_named(
    trained: Factory, again: Factory, spec_of: Factory, tmp_path: Path, damage: Any, message: str
):
    trained(spec_of(quantize="nf4"))
    damage(tmp_path / "model")
    with pytest.raises(UserError, match=message):
        again(spec_of(quantize="nf4"))


def test_adapters_of_another_rank_are_named(trained: Factory, again: Factory, spec_of: Factory):
    trained(spec_of())
    with pytest.raises(UserError, match=r"misshapen tensors: base_model\.\S+: shape \[4, \d+\], the config says \[8, "):
        again(spec_of({"rank": 8}))
