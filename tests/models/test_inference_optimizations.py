"""What is left out changes no result: images, HD images, videos and text, in every order, family and depth."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.refusals import refuses

from llava_mini.models.inference_optimizations import RELEASE, InferenceOptimizations
from llava_mini.models.memory_options import checkpoint_layers

REFERENCE = InferenceOptimizations(stop_tower=False, split_prefusion=False, trim_last_layer=False)
SAVINGS = {
    "all": InferenceOptimizations(),
    "stop_tower": replace(REFERENCE, stop_tower=True),
    "split_prefusion": replace(REFERENCE, split_prefusion=True),
    "trim_last_layer": replace(REFERENCE, split_prefusion=True, trim_last_layer=True),
    "frame_batch": replace(REFERENCE, frame_batch=2),
    "all, frame by frame": InferenceOptimizations(frame_batch=1),
    "release": RELEASE,
}


def logits_of(model, batch, optimizations: InferenceOptimizations) -> torch.Tensor:
    model.optimizations = optimizations
    return model(**batch).logits[batch["attention_mask"].bool()]


@pytest.fixture
def mixed(make_sample):
    """An image, an HD image, a video, text, a longer video: their prompts differ in length."""
    samples = [(1, 1, 1), (2, 1, 5), (3, 3, 1), (4, 0, 1), (5, 4, 1)]
    return [make_sample(seed, frames=frames, views=views) for seed, frames, views in samples]


@torch.no_grad()
@pytest.mark.parametrize("name", SAVINGS)
@pytest.mark.parametrize("order", ["release", "paper"])
def test_a_mixed_batch_has_the_reference_logits(make_model, collate, mixed, orders, order: str, name: str) -> None:
    model = make_model(**orders[order])
    for answers in (True, False):
        batch = collate(model, mixed, answers=answers)
        expected = logits_of(model, batch, REFERENCE)
        torch.testing.assert_close(logits_of(model, batch, SAVINGS[name]), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("depth", [0, 1, 3, 4])
@pytest.mark.parametrize("compressor", ["query", "none", "zero"])
def test_every_depth_and_compressor(make_model, collate, mixed, compressors, compressor: str, depth: int) -> None:
    model = make_model(num_fusion_layers=depth, compressor=compressors[compressor])
    batch = collate(model, mixed)
    expected = logits_of(model, batch, REFERENCE)
    torch.testing.assert_close(logits_of(model, batch, InferenceOptimizations()), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_every_family_of_layers(make_model, make_text_config, collate, mixed, family: str) -> None:
    model = make_model(text_config=make_text_config(family))
    batch = collate(model, mixed)
    expected = logits_of(model, batch, REFERENCE)
    torch.testing.assert_close(logits_of(model, batch, InferenceOptimizations()), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_reference_is_what_training_computes(make_model, collate, mixed) -> None:
    model = make_model()
    batch = collate(model, mixed)
    saved = logits_of(model, batch, InferenceOptimizations())
    with torch.enable_grad():
        trained = model(**batch).logits[batch["attention_mask"].bool()]
    torch.testing.assert_close(trained.detach(), saved, atol=1e-5, rtol=1e-5)


def gradients(model, batch, optimizations: InferenceOptimizations) -> dict[str, torch.Tensor]:
    model.optimizations = optimizations
    model.zero_grad()
    model(**batch).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("packed", "recomputed"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(("family", "order"), [("llama", "release"), ("mistral", "paper"), ("qwen2", "release")])
def test_training_leaves_out_rows_and_has_the_same_gradients(
    make_model, make_text_config, collate, mixed, orders, family: str, order: str, packed: bool, recomputed: bool
) -> None:
    model = make_model(text_config=make_text_config(family), **orders[order]).train()
    model.vision_tower.requires_grad_(False)
    batch = collate(model, mixed)
    if packed:  # the instruction's last two tokens and the answer are a turn of their own
        batch["turn_ids"] = (
            batch["attention_mask"].cumsum(1) > batch["attention_mask"].sum(1, keepdim=True) - 5
        ).long()
    if recomputed:
        checkpoint_layers(model)
    rows: list[int] = []
    model.prefusion.layers[-1].mlp.register_forward_pre_hook(lambda _, given: rows.append(given[0].shape[1]))
    expected, saved = (gradients(model, batch, each) for each in (REFERENCE, InferenceOptimizations()))
    assert saved.keys() == expected.keys()
    for name, gradient in saved.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4, msg=name)
    patches = 5 * model.side**2  # of an HD image, to which the others are padded
    times = 2 if recomputed else 1
    assert len(rows) == 2 * times and rows[0] - rows[-1] == patches


@pytest.mark.parametrize("reason", ["dropout", "eager", "sharded"])
def test_training_calls_the_last_layer_as_a_whole_where_its_parts_do_not_suffice(
    make_model, make_text_config, collate, make_sample, reason: str
) -> None:
    text_config = make_text_config(attention_dropout=0.5 if reason == "dropout" else 0.0)
    model = make_model(text_config=text_config).train()
    if reason == "eager":
        model.set_attn_implementation("eager")
    model.runs_all_layers = reason == "sharded"
    calls: list[None] = []
    model.prefusion.layers[-1].register_forward_pre_hook(lambda *_: calls.append(None))
    model(**collate(model, [make_sample(1)])).loss.backward()
    assert calls


@torch.no_grad()
def test_generation_gives_the_same_tokens(make_model, collate, mixed) -> None:
    model = make_model()
    batch = collate(model, mixed, padding_side="left", answers=False)
    batch.pop("labels", None)
    said = []
    for optimizations in (REFERENCE, InferenceOptimizations(), InferenceOptimizations(frame_batch=1)):
        model.optimizations = optimizations
        said.append(model.generate(**batch, max_new_tokens=5, do_sample=False))
    assert torch.equal(said[0], said[1]) and torch.equal(said[0], said[2])


@torch.no_grad()
def test_less_is_computed(make_model, collate, make_sample) -> None:
    """Rows of the tower's last layer and of pre-fusion's last MLP."""
    model = make_model()
    batch = collate(model, [make_sample(1, frames=3)])
    rows: dict[str, list[Any]] = {}
    tower = model.vision_tower.get_submodule("encoder.layers")[-1]
    for name, module in (("tower", tower.mlp), ("prefusion", model.prefusion.layers[-1].mlp)):
        module.register_forward_pre_hook(lambda _, given, name=name: rows.setdefault(name, []).append(given[0].shape))
    logits_of(model, batch, replace(REFERENCE, frame_batch=3))
    assert rows["tower"] == [(3, model.side**2 + 1, model.config.vision_config.hidden_size)]
    assert rows["prefusion"][0][:1] == (3,) and rows["prefusion"][0][1] > model.side**2
    rows.clear()
    logits_of(model, batch, InferenceOptimizations(frame_batch=2))
    assert "tower" not in rows
    said = int((batch["input_ids"] != model.config.image_token_id).sum(1).max() - 3)  # but for the answer
    assert [shape[:2] for shape in rows["prefusion"]] == [(2, 4 + said), (1, 4 + said)]


@torch.no_grad()
def test_a_question_reads_what_was_seen(make_model, make_sample) -> None:
    """`prefill_visual` once, `attend_text` twice: each as if frame and question had gone through together."""
    model = make_model()
    visual = model.compress_and_project(model.encode(torch.stack(list(make_sample(1, frames=2).frames))))
    seen_FLD = torch.cat([visual.patches_FPD, visual.compressed_FKD], dim=1)
    patches = visual.patches_FPD.shape[1]
    compressed, seen = model.prefusion.prefill_visual(seen_FLD, first=patches)
    for count in (3, 5):
        text = torch.randn(2, count, seen_FLD.shape[2], generator=torch.Generator().manual_seed(count))
        whole = torch.cat([seen_FLD, text], dim=1)
        expected = model.prefusion(whole, torch.ones(whole.shape[:2], dtype=torch.bool), None)
        fused = model.prefusion.attend_text(text, seen, torch.ones(1, count, dtype=torch.bool))
        torch.testing.assert_close(fused, expected[:, -count:], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(compressed, expected[:, patches:-count], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("frozen", [torch.float32, torch.bfloat16])
def test_half_precision_by_autocast_and_in_a_frozen_language_model(make_model, collate, mixed, frozen) -> None:
    model = make_model()
    batch = collate(model, mixed)
    exact = logits_of(model, batch, InferenceOptimizations())
    model.language_model.to(frozen)
    model.vision_tower.to(frozen)
    with torch.autocast("cpu", torch.bfloat16):
        expected, saved = logits_of(model, batch, REFERENCE), logits_of(model, batch, InferenceOptimizations())
    assert saved.dtype == expected.dtype
    assert (saved - exact).abs().mean() < 1.2 * (expected - exact).abs().mean() < 0.2


def test_impossible_optimizations_are_refused() -> None:
    with refuses("trim_last_layer", True):
        InferenceOptimizations(split_prefusion=False)
    with refuses("frame_batch", 0, "1 and above, and None"):
        InferenceOptimizations(frame_batch=0)
