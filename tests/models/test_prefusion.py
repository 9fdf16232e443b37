"""Pre-fusion: the language model's layers run causally over what is visible, and can start as copies of them."""

import pytest
import torch
from tests.refusals import refuses

from llava_mini.models.language_model import FAMILIES, build_language_model
from llava_mini.models.prefusion import Prefusion

ATOL = (
    1e-4  # float32 sums in another order differ by 1e-5 at values around ten; a wrong mask or position by more than 0.1
)


@pytest.fixture(params=FAMILIES)
def pair(request, make_text_config):
    """(language model, pre-fusion of two layers copied from it)."""
    torch.manual_seed(0)
    config = make_text_config(request.param, initializer_range=0.3)
    language_model = build_language_model(config).eval()
    prefusion = Prefusion(text_config=config, num_layers=2).eval()
    prefusion.copy_from(language_model)
    return language_model, prefusion


@torch.no_grad()
def test_copied_layers_compute_what_the_language_models_first_layers_compute(pair) -> None:
    language_model, prefusion = pair
    hidden = torch.randn(2, 7, 48)
    states = language_model.get_decoder()(inputs_embeds=hidden, output_hidden_states=True).hidden_states
    fused = prefusion(hidden, torch.ones(2, 7).bool(), None)
    torch.testing.assert_close(fused, states[2], atol=ATOL, rtol=0)


@torch.no_grad()
def test_hidden_entries_are_as_if_absent(pair) -> None:
    _, prefusion = pair
    hidden = torch.randn(1, 7, 48)
    visible = torch.tensor([[1, 1, 0, 1, 0, 0, 1]]).bool()
    fused = prefusion(hidden, visible, None)
    alone = prefusion(hidden[:, visible[0]], torch.ones(1, 4).bool(), None)
    torch.testing.assert_close(fused[:, visible[0]], alone, atol=ATOL, rtol=0)
    assert torch.isfinite(fused).all()


@torch.no_grad()
def test_turns_are_as_if_alone(pair) -> None:
    _, prefusion = pair
    hidden = torch.randn(1, 7, 48)
    turns = torch.tensor([[0, 0, 1, 1, 2, 2, 2]])
    fused = prefusion(hidden, torch.ones(1, 7).bool(), turns)
    for turn in (1, 2):
        own = (turns[0] == 0) | (turns[0] == turn)
        alone = prefusion(hidden[:, own], torch.ones(1, int(own.sum())).bool(), None)
        torch.testing.assert_close(fused[:, own], alone, atol=ATOL, rtol=0)


@torch.no_grad()
def test_is_causal(pair) -> None:
    _, prefusion = pair
    hidden = torch.randn(1, 6, 48)
    changed = hidden.clone()
    changed[:, 3:] += 1
    visible = torch.ones(1, 6).bool()
    before, after = prefusion(hidden, visible, None), prefusion(changed, visible, None)
    torch.testing.assert_close(after[:, :3], before[:, :3], atol=ATOL, rtol=0)
    assert (after[:, 3:] - before[:, 3:]).abs().amax(-1).min() > 0.1


@torch.no_grad()
def test_the_identity_returns_its_input_and_learns(pair) -> None:
    _, prefusion = pair
    hidden = torch.randn(2, 6, 48)
    visible = torch.ones(2, 6).bool()
    before = prefusion(hidden, visible, None)
    prefusion.become_identity()
    assert (before - hidden).abs().max() > 0.1
    assert torch.equal(prefusion(hidden, visible, None), hidden)
    rows, seen = prefusion.prefill_visual(hidden[:, :4], first=2)
    assert torch.equal(rows, hidden[:, 2:4])
    assert torch.equal(prefusion.attend_text(hidden[:, 4:], seen, visible[:, 4:]), hidden[:, 4:])
    with torch.enable_grad():
        prefusion(hidden, visible, None).square().sum().backward()
    grown = {name for name, each in prefusion.layers.named_parameters() if each.grad is not None and each.grad.any()}
    outputs = {f"{n}.{name}.weight" for n in (0, 1) for name in ("self_attn.o_proj", "mlp.down_proj")}
    assert grown == outputs  # the others follow once these are no longer zero


def test_copies_are_copies(pair) -> None:
    language_model, prefusion = pair
    own = language_model.get_decoder().layers[0].mlp.up_proj.weight
    copied = prefusion.layers[0].mlp.up_proj.weight
    assert torch.equal(own, copied)
    with torch.no_grad():
        copied.zero_()
    assert own.abs().sum() > 0


def test_more_layers_than_the_language_model_has(make_text_config) -> None:
    config = make_text_config()
    prefusion = Prefusion(text_config=config, num_layers=4)
    with refuses("fusion.num_layers", 4):
        prefusion.copy_from(build_language_model(config))
