"""What saves memory changes nothing else: loss and gradients with each option against those without.

Tolerances: float32 with logits of about one; see test_llava_mini.py.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.models.memory_options import apply_memory_options, decoder_layers
from llava_mini.stages.instruction import InstructionStage

NONE = {"activation_checkpointing": False, "loss_chunk": None, "vision_batch": None, "offload_vision": False}
Gradients = tuple[Tensor, dict[str, Tensor]]


def step(model: LlavaMiniForConditionalGeneration, batch: dict[str, Tensor]) -> Gradients:
    model.zero_grad()
    outputs = model(**batch)
    outputs.loss.backward()
    return outputs.loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(got: Gradients, want: Gradients) -> None:
    torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=1e-6)
    assert got[1].keys() == want[1].keys()
    for name, gradient in want[1].items():
        torch.testing.assert_close(got[1][name], gradient, rtol=1e-3, atol=1e-4, msg=name)


def calls_of(module: nn.Module) -> list[int]:
    """A list that grows with every forward pass of `module`."""
    calls: list[int] = []
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@pytest.fixture
def turns(make_sample: Callable, collate: Callable) -> Callable[..., dict[str, Tensor]]:
    """turns(model): two samples whose answers are cut into independent turns."""

    def make(model: Any) -> dict[str, Tensor]:
        batch = collate(model, [make_sample(1, answer=6), make_sample(2, answer=6)])
        learned = batch["labels"] != -100
        turn = learned.long() + (learned & (learned.cumsum(1) > 3)).long()
        return {**batch, "turn_ids": turn}

    return make


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("independent", [False, True])
def test_the_loss_in_chunks_is_the_plain_loss(
    make_model, make_text_config, make_sample, collate, turns, tied: bool, independent: bool
) -> None:
    model = make_model(text_config=make_text_config(tie_word_embeddings=tied))
    batch = turns(model) if independent else collate(model, [make_sample(1), make_sample(2, frames=2)])
    plain = step(model, batch)  # evaluation mode: from all logits
    model.train()
    same(step(model, batch), plain)
    apply_memory_options(model, loss_chunk=2)
    same(step(model, batch), plain)


def test_training_makes_no_logits_but_those_that_are_learnt(make_model, make_sample, collate) -> None:
    model = make_model()
    batch = collate(model, [make_sample(1)])
    rows: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda _head, _given, logits: rows.append(logits.numel()))
    vocabulary = model.config.text_config.vocab_size
    assert model(**batch).logits.numel() == batch["input_ids"].numel() * vocabulary
    model.train()
    assert model(**batch).logits is None
    assert rows == [batch["input_ids"].numel() * vocabulary, 3 * vocabulary]
    without_labels = {name: value for name, value in batch.items() if name != "labels"}
    without_labels["instruction_mask"] = batch["labels"] == -100  # in training something must hide the answers
    assert model(**without_labels).logits.shape[:2] == batch["input_ids"].shape


def test_evaluation_has_all_logits_with_every_option(make_model, make_sample, collate) -> None:
    model = make_model()
    batch = collate(model, [make_sample(1), make_sample(2, frames=2)])
    with torch.no_grad():
        plain = model(**batch)
        apply_memory_options(model, activation_checkpointing=True, loss_chunk=2, vision_batch=2, offload_vision=True)
        saving = model(**batch)
    torch.testing.assert_close(saving.logits, plain.logits, rtol=0, atol=1e-5)
    assert torch.equal(model.generate(**_prompt(batch), max_new_tokens=4), _generated(model, _prompt(batch)))


def _prompt(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name != "labels"}


def _generated(model: LlavaMiniForConditionalGeneration, prompt: dict[str, Tensor]) -> Tensor:
    apply_memory_options(model)
    for layer in decoder_layers(model):
        layer.gradient_checkpointing = False
    return model.generate(**prompt, max_new_tokens=4)


def test_decoder_layers_are_computed_again_and_the_vision_tower_is_not(make_model, make_sample, collate) -> None:
    model = make_model().train()
    model.vision_tower.requires_grad_(False)
    batch = collate(model, [make_sample(1, frames=2), make_sample(2, frames=0)])
    plain = step(model, batch)
    apply_memory_options(model, activation_checkpointing=True)
    layers = [calls_of(layer.mlp) for layer in decoder_layers(model)]
    tower = calls_of(model.vision_tower.encoder.layers[0].mlp)
    same(step(model, batch), plain)
    assert [len(calls) for calls in layers] == [2] * (2 + 3)
    assert len(tower) == 1


@pytest.mark.parametrize("frames", [0, 1])
def test_with_frozen_embeddings_gradients_still_flow_through_checkpoints(
    make_model, make_sample, collate, frames: int
) -> None:
    model = make_model().train()
    model.get_input_embeddings().requires_grad_(False)
    batch = collate(model, [make_sample(1, frames=frames)])
    plain = step(model, batch)
    apply_memory_options(model, activation_checkpointing=True)
    calls = calls_of(model.get_decoder().layers[0].mlp)
    got = step(model, batch)
    same(got, plain)
    assert len(calls) == 2
    assert got[1]["language_model.model.layers.0.mlp.up_proj.weight"].any()


def test_a_frozen_language_model_is_checkpointed_though_it_is_in_evaluation_mode(
    make_model, make_sample, collate
) -> None:
    """Gradients flow through it to pre-fusion; dropout in it stays off, though its layers follow the model's mode."""
    model = make_model(seed=3)
    model.config.text_config.attention_dropout = 0.5
    for layer in model.get_decoder().layers:
        layer.self_attn.attention_dropout = 0.5
    stage = InstructionStage(model=model, learning_rates={"projector": 1e-3, "prefusion": 1e-3, "compressor": 1e-3})
    batch = collate(model, [make_sample(1, frames=2)])
    plain = step(model, batch)
    apply_memory_options(model, activation_checkpointing=True)
    stage.train()
    assert not model.language_model.training
    layers = [calls_of(layer.mlp) for layer in decoder_layers(model)]
    same(step(model, batch), plain)
    assert [len(calls) for calls in layers] == [2] * (2 + 3)
    stage.eval()
    model(**batch)
    assert not any(layer.training for layer in decoder_layers(model))


@pytest.mark.parametrize("views", [1, 2, 3, 100])
def test_views_in_small_batches_have_the_same_features(make_model, make_sample, collate, views: int) -> None:
    model = make_model()
    model.vision_tower.requires_grad_(False)
    batch = collate(model, [make_sample(1), make_sample(2, views=5), make_sample(3, frames=3)])
    whole = model.encode(batch["pixel_values"], batch["num_views"])
    apply_memory_options(model, vision_batch=views)
    calls = calls_of(model.vision_tower)
    features = model.encode(batch["pixel_values"], batch["num_views"])
    torch.testing.assert_close(features, whole, rtol=0, atol=1e-5)
    assert len(calls) == -(-(1 + 5 + 3) // views)
    assert not features.requires_grad


def test_a_tower_that_trains_has_gradients_with_and_without_small_batches(make_model, make_sample, collate) -> None:
    model = make_model()
    batch = collate(model, [make_sample(1, frames=3)])
    plain = step(model, batch)
    assert plain[1]["vision_tower.encoder.layers.0.mlp.fc1.weight"].any()
    apply_memory_options(model, vision_batch=2, offload_vision=True)
    same(step(model, batch), plain)


def offloaded(model: LlavaMiniForConditionalGeneration) -> LlavaMiniForConditionalGeneration:
    model.vision_tower.requires_grad_(False)
    apply_memory_options(model, offload_vision=True)
    for module in model.vision_tower.modules():  # buffers stay on the device
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to("meta"))
    return model


def test_the_towers_weights_come_for_the_features_and_go_back(make_model) -> None:
    """The other device is `meta`, which has shapes and types and no numbers."""
    model = offloaded(make_model())
    before = {name: (p, p.data_ptr()) for name, p in model.vision_tower.named_parameters()}
    places: list[str] = []
    layer = model.vision_tower.encoder.layers[0]
    layer.register_forward_pre_hook(lambda *_: places.append(layer.mlp.fc1.weight.device.type))
    for _ in range(2):
        features = model.encode(torch.zeros(2, 1, 3, 24, 24, device="meta"))
        assert features.device.type == "meta" and features.shape == (2, 1, 16, 32)
        for name, parameter in model.vision_tower.named_parameters():
            assert parameter is before[name][0], name
            assert (parameter.device.type, parameter.data_ptr()) == ("cpu", before[name][1]), name
    assert places == ["meta", "meta"]


def test_after_an_error_the_towers_weights_are_back(make_model) -> None:
    model, pixels = offloaded(make_model()), torch.zeros(1, 1, 3, 24, 24, device="meta")
    handle = model.vision_tower.encoder.layers[0].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.encode(pixels)
    handle.remove()
    assert {weight.device.type for weight in model.vision_tower.parameters()} == {"cpu"}
    assert model.encode(pixels).shape == (1, 1, 16, 32)


def test_a_tower_in_half_precision_feeds_trained_parts_in_full_precision(make_model, make_sample, collate) -> None:
    model = make_model().train()
    batch = collate(model, [make_sample(1), make_sample(2, frames=2)])
    model.vision_tower.requires_grad_(False)
    exact = step(model, batch)
    model.vision_tower.to(torch.bfloat16)
    inside: list[torch.dtype] = []
    model.vision_tower.encoder.layers[1].register_forward_pre_hook(lambda _, given: inside.append(given[0].dtype))
    assert model.dtype == torch.float32
    for autocast in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = model(**batch).loss
        loss.backward()
        assert torch.isfinite(loss) and loss.dtype == torch.float32
        assert abs(float(loss.detach() - exact[0])) < 0.2  # 8 bits; another image moves it by one
        for name, parameter in model.named_parameters():
            assert parameter.grad is None or parameter.grad.dtype == torch.float32, name
        assert {name for name, p in model.named_parameters() if p.grad is not None} == exact[1].keys()
    assert inside == [torch.bfloat16] * 2
    features = model.encode(batch["pixel_values"])
    assert features.dtype == torch.bfloat16
    assert model.compress_and_project(features).patches_FPD.dtype == torch.float32


def test_what_is_saved_is_loaded_in_the_trained_parts_type(make_model, tmp_path) -> None:
    """transformers loads a folder in the type that its config names, and a tower in half comes first in the model."""
    model = make_model()
    model.vision_tower.to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    loaded = LlavaMiniForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.projector.linear_1.weight.dtype == torch.float32
    assert torch.equal(loaded.projector.linear_1.weight, model.projector.linear_1.weight)


def test_ranks_that_share_layers_run_them_all_and_learn_nothing_from_it(make_model, make_sample, collate) -> None:
    model = make_model().train()
    model.vision_tower.requires_grad_(False)
    batch = collate(model, [make_sample(1, frames=0), make_sample(2, frames=0)])
    loss, gradients = step(model, batch)
    model.runs_all_layers = True
    calls = [calls_of(part) for part in (model.projector, model.compressor, model.prefusion.layers[1])]
    shared_loss, shared = step(model, batch)
    assert torch.equal(shared_loss, loss)
    assert all(calls)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert shared.keys() == trained != gradients.keys()
    for name in trained:
        assert torch.equal(shared[name], gradients[name]) if name in gradients else not shared[name].any(), name
