"""A frozen language model is the same as if it had been in float32, and never is as a whole."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.refusals import refuses
from torch import nn

from llava_mini import assembly, finetune
from llava_mini.config import Config
from llava_mini.errors import UserError
from llava_mini.models.lazy_linear import LazyLinear

Resolve = Callable[..., Config]
FINE = {
    "qlora": ["finetune=qlora", "finetune.lora.rank=2", "trainer.precision=bf16-mixed"],
    "lora": ["finetune=lora", "finetune.lora.rank=2", "memory.frozen_dtype=bfloat16", "trainer.precision=bf16-mixed"],
    "frozen by its stage": [
        "stage.learning_rates.language_model=null",
        "memory.frozen_dtype=bfloat16",
        "trainer.precision=bf16-mixed",
    ],
}


@pytest.fixture
def stored(config_of: Resolve, model_of: Any, tmp_path: Path) -> Path:
    """A model without pre-fusion in half precision, in several files."""
    model = model_of(config_of("seed=5", "model.text_config.intermediate_size=192")).half()
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("prefusion.")}
    model.save_pretrained(tmp_path / "stored", state_dict=state, max_shard_size="100KB")
    assert len(list((tmp_path / "stored").glob("model-*.safetensors"))) > 2
    return tmp_path / "stored"


@pytest.fixture
def run_of(config_of: Resolve, stored: Path) -> Resolve:
    """run_of("qlora", "key=value", ...): the config of a run over the stored model."""
    return lambda how, *overrides: config_of(
        "model.text_config.intermediate_size=192", f"model.weights=[{stored}]", *FINE[how], *overrides
    )


def whole(config: Config, model_of: Any) -> Any:
    """The model as it is built for a run that freezes nothing: in float32."""
    stage = replace(config.stage, arguments={**config.stage.arguments, "learning_rates": {"language_model": 1e-5}})
    plain = {"finetune": {"language_model": "full", "quantize": None}, "memory": {"frozen_dtype": None}}
    return model_of(replace(config.changed(plain), stage=stage))


@pytest.mark.parametrize("how", ["qlora", "lora"])
def test_it_is_the_model_that_float32_gives(run_of: Resolve, model_of: Any, how: str) -> None:
    config = run_of(how)
    small, plain = model_of(config), whole(config, model_of)
    assert {p.dtype for p in plain.language_model.parameters()} == {torch.float32}
    if how == "qlora":
        assert finetune.fingerprints(small) == finetune.fingerprints(plain)
    for model in (small, plain):
        assembly.fine_tune(config, model)
    ours, theirs = small.state_dict(), plain.state_dict()
    assert ours.keys() == theirs.keys()
    assert not any(tensor.is_meta for tensor in ours.values())
    unequal = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert all(name.endswith("lora_A.default.weight") for name in unequal)
    for name in unequal:  # PEFT draws what it adds in the type of the layer: bfloat16 keeps 8 bits
        torch.testing.assert_close(ours[name], theirs[name], rtol=2**-8, atol=0)
    assert [(n, p.dtype, p.requires_grad) for n, p in small.named_parameters()] == [
        (n, p.dtype, p.requires_grad) for n, p in plain.named_parameters()
    ]


def test_layers_wait_in_their_files_and_come_one_by_one(run_of: Resolve, model_of: Any) -> None:
    config = run_of("qlora")
    model = model_of(config)
    decoder = model.language_model.get_decoder()
    waiting = [each for each in decoder.modules() if isinstance(each, nn.Linear)]
    assert len(waiting) == 14 and all(isinstance(each, LazyLinear) and each.weight.is_meta for each in waiting)
    assert not any(isinstance(each, LazyLinear) for each in model.prefusion.modules())
    seen: list[torch.Tensor] = []

    def pack(linear: nn.Linear, dtype: torch.dtype) -> nn.Module:
        assert linear.weight.dtype == torch.float32 and not linear.weight.is_meta
        assert sum(each() is not None for each in alive) == 0  # the layer before is gone
        alive.append(weakref.ref(linear.weight))
        seen.append(linear.weight.detach().half())
        return nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")

    alive: list[Any] = []
    finetune.quantization.quantize_linears(decoder, torch.bfloat16, pack)
    plain = whole(config, model_of).language_model.get_decoder()
    expected = [each.weight for each in plain.modules() if isinstance(each, nn.Linear)]
    assert all(torch.equal(a.float(), b) for a, b in zip(seen, expected, strict=True))


def test_a_frozen_base_is_in_its_own_type_at_once(run_of: Resolve, model_of: Any) -> None:
    model = model_of(run_of("lora"))
    assert {p.dtype for p in model.language_model.parameters()} == {torch.bfloat16}
    rest = [p for name, p in model.named_parameters() if not name.startswith("language_model.")]
    assert {p.dtype for p in rest} == {torch.float32}
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    alignment = run_of("frozen by its stage")
    assert {p.dtype for p in model_of(alignment).language_model.parameters()} == {torch.bfloat16}


def test_pre_fusion_starts_from_what_is_stored_and_not_from_what_is_kept(run_of: Resolve, model_of: Any) -> None:
    config = run_of("lora")
    expected = whole(config, model_of).prefusion.state_dict()
    own = model_of(config).prefusion.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in expected.items())
    with refuses("fusion.num_layers", 3):
        model_of(run_of("lora", "fusion.num_layers=3", "fusion.init=copy"))


def test_a_language_model_that_no_folder_holds_stays_random(config_of: Resolve, model_of: Any) -> None:
    model = model_of(config_of(*FINE["qlora"]))
    assert not any(isinstance(each, LazyLinear) for each in model.modules())


def spoil(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    for path in folder.glob("model-*.safetensors"):
        tensors = load_file(path)
        name = "language_model.model.layers.1.mlp.up_proj.weight"
        if name in tensors:
            save_file({**tensors, name: change(tensors[name])}, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w[:-1].contiguous(), "misshapen tensors: language_model.model.layers.1.mlp.up_proj.weight"),
        (lambda w: w.to(torch.int8), "up_proj.weight is stored as I8, as in a quantized checkpoint"),
        (lambda w: w.fill_(torch.nan), "up_proj.weight contains NaN or infinity"),
    ],
)
def test_a_base_that_does_not_fit_is_one_line(
    run_of: Resolve, model_of: Any, stored: Path, change: Any, message: str
) -> None:
    spoil(stored, change)
    with pytest.raises(UserError, match=message) as caught:
        assembly.fine_tune(run_of("qlora"), model_of(run_of("qlora")))
    assert "\n" not in str(caught.value)
