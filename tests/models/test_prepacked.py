"""Prepacked linear layers: the same numbers, the same state dict, and no gradients."""

import copy
import pickle
import re
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from llava_mini.finetune import fingerprints
from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.models.prepacked import PrepackedLinear, prepack


def prepacked_names(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, PrepackedLinear)}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(24,), (1, 24), (0, 24), (3, 2, 24), (2, 700, 24)], ids=str)
@torch.no_grad()
def test_a_layer_gives_what_it_gave(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(24, 40, bias=bias)
    rows = torch.randn(shape)
    torch.testing.assert_close(PrepackedLinear(linear)(rows), linear(rows))


@torch.no_grad()
def test_rows_need_not_be_contiguous() -> None:
    linear, rows = nn.Linear(24, 40), torch.randn(5, 3, 2, 48)
    packed = PrepackedLinear(linear)
    for each in (
        rows[..., 1:25],
        rows[..., ::2],
        rows[..., :24].transpose(0, 1),
        rows[:1, ..., :24].expand(7, 3, 2, 24),
    ):
        torch.testing.assert_close(packed(each), linear(each))


def test_no_gradient_is_given_silently() -> None:
    packed = PrepackedLinear(nn.Linear(4, 4))
    with pytest.raises(RuntimeError, match="for inference"):
        packed(torch.randn(1, 4, requires_grad=True))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_a_model_gives_the_same_logits(make_model, make_text_config, make_sample, collate, family: str) -> None:
    model = make_model(text_config=make_text_config(family))
    batch = collate(
        model, [make_sample(1), make_sample(2, views=5), make_sample(3, frames=3), make_sample(4, frames=0)]
    )
    with torch.no_grad():
        expected = model(**batch).logits
    plain = {name for name, module in model.named_modules() if type(module) is nn.Linear}
    prepack(model)
    parts = ("vision_tower.", "projector.", "prefusion.", "language_model.")
    assert prepacked_names(model) == {name for name in plain if name.startswith(parts)}
    torch.testing.assert_close(model(**batch).logits, expected, atol=1e-5, rtol=1e-5)


def test_a_tied_head_stays_the_embedding(make_model, make_text_config) -> None:
    model = make_model(text_config=make_text_config("llama", tie_word_embeddings=True))
    prepack(model)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert prepacked_names(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_types_stay_as_they_are(make_model, dtype: torch.dtype) -> None:
    model = make_model().to(dtype)
    prepack(model)
    assert not prepacked_names(model)


def test_what_is_known_of_a_model_stays(make_model, tmp_path: Path) -> None:
    """State dict, fingerprints and what is saved, bit by bit."""
    model = make_model().eval()
    before, known = {name: each.clone() for name, each in model.state_dict().items()}, fingerprints(model)
    prepack(model)
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert fingerprints(model) == known
    model.save_pretrained(tmp_path)
    again = LlavaMiniForConditionalGeneration.from_pretrained(tmp_path)
    assert all(torch.equal(each, before[name]) for name, each in again.state_dict().items())


def test_copies_pickles_and_loaded_weights_are_prepacked_again() -> None:
    linear = nn.Linear(8, 5)
    packed = PrepackedLinear(linear)
    other = PrepackedLinear(nn.Linear(8, 5))
    other.load_state_dict(packed.state_dict())
    for each in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed)), other):
        assert type(each) is PrepackedLinear and each.weight.is_mkldnn and each.weight is not packed.weight
        torch.testing.assert_close(each(torch.ones(2, 8)), packed(torch.ones(2, 8)))
        assert list(each.state_dict()) == ["weight", "bias"]


def test_a_layer_that_is_moved_becomes_a_plain_one() -> None:
    linear = nn.Linear(8, 5)
    half = PrepackedLinear(linear).half()
    assert type(half) is nn.Linear and torch.equal(half.weight, linear.weight.half())
    assert [name for name, _ in half.named_parameters()] == ["weight", "bias"]
    assert type(PrepackedLinear(linear).to("meta")) is nn.Linear
    stays = PrepackedLinear(linear).float().to("cpu").eval()
    assert type(stays) is PrepackedLinear and stays.weight.is_mkldnn


@torch.no_grad()
def test_what_does_not_fit_is_reported_as_of_a_plain_layer() -> None:
    linear, rows = nn.Linear(8, 5), torch.randn(2, 8)
    packed = PrepackedLinear(linear)
    for wrong in (torch.randn(2, 7), rows.double()):
        with pytest.raises(RuntimeError) as told:
            linear(wrong)
        with pytest.raises(RuntimeError, match=re.escape(str(told.value).splitlines()[0])):
            packed(wrong)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(packed(rows), linear(rows))


def test_one_layer_is_in_memory_twice_and_no_more(make_model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each plain weight is gone before the next layer is packed."""
    model = make_model()
    plain = [weakref.ref(module.weight) for module in model.language_model.modules() if type(module) is nn.Linear]
    alive: list[int] = []

    def packed(weight: torch.Tensor) -> nn.Parameter:
        alive.append(sum(each() is not None for each in plain))
        return nn.Parameter(weight.detach().clone(), requires_grad=False)

    monkeypatch.setattr("llava_mini.models.prepacked._packed", packed)
    prepack(model)
    assert alive[-len(plain) :] == list(range(len(plain), 0, -1))


@torch.no_grad()
def test_a_compiled_model_is_right() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 8))
    rows = torch.randn(3, 8)
    expected = model(rows)
    model[0], model[2] = PrepackedLinear(model[0]), PrepackedLinear(model[2])
    torch.testing.assert_close(torch.compile(model, backend="aot_eager")(rows), expected)
