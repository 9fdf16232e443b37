"""What transformers' common tests check of its own models (ModelTesterMixin), as far as it applies; see docs."""

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration

from llava_mini.models import LlavaMiniForConditionalGeneration

Factory = Callable[..., Any]
GREEDY = {"do_sample": False, "max_new_tokens": 3}


@pytest.fixture
def batch(make_model: Factory, make_sample: Factory, collate: Factory) -> dict[str, Any]:
    return collate(make_model(), [make_sample(1), make_sample(2, frames=2)])


def test_the_first_arguments_are_those_of_other_models() -> None:
    ours, theirs = (
        list(inspect.signature(each.forward).parameters)
        for each in (LlavaMiniForConditionalGeneration, LlavaForConditionalGeneration)
    )
    assert ours[1] == theirs[1] == "input_ids"
    unknown = {
        "inputs_embeds",
        "mm_encoder_outputs",
        "vision_feature_layer",
        "vision_feature_select_strategy",
        "image_sizes",
    }
    assert set(theirs) - set(ours) <= unknown


def test_attentions_and_hidden_states(make_model: Factory, batch: dict[str, Any]) -> None:
    model, length = make_model(), batch["input_ids"].shape[1]
    assert not model(**batch, output_attentions=True).attentions  # sdpa makes none, as in transformers
    model.set_attn_implementation("eager")
    outputs = model(**batch, output_attentions=True, output_hidden_states=True)
    assert [tuple(each.shape) for each in outputs.attentions] == [(2, 4, length, length)] * 3
    assert [tuple(each.shape) for each in outputs.hidden_states] == [(2, length, 48)] * 4
    model.config.output_hidden_states = model.config.text_config.output_hidden_states = True
    assert len(model(**batch).hidden_states) == 4


def test_gradients_reach_hidden_states_and_attentions(make_model: Factory, batch: dict[str, Any]) -> None:
    model = make_model().train()
    model.set_attn_implementation("eager")
    outputs = model(**batch, output_hidden_states=True, output_attentions=True)
    kept = [*outputs.hidden_states, *outputs.attentions]
    for tensor in kept:
        tensor.retain_grad()
    outputs.loss.backward()
    assert all(tensor.grad is not None and bool(tensor.grad.any()) for tensor in kept)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_embeddings_grow_and_shrink(make_model, make_text_config, batch, tied: bool, tmp_path: Path) -> None:
    """The placeholder's id, which lay beyond the vocabulary, is then within it, and is still never said."""
    model = make_model(text_config=make_text_config(tie_word_embeddings=tied))
    with torch.no_grad():
        expected = model(**batch).logits
        for size in (120, 99):
            model.resize_token_embeddings(size)
            assert model.config.text_config.vocab_size == model.language_model.config.vocab_size == size
            assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
            torch.testing.assert_close(model(**batch).logits[..., :99], expected)
            prompt = {name: tensor for name, tensor in batch.items() if name != "labels"}
            assert 99 not in model.generate(**prompt, **GREEDY)[:, batch["input_ids"].shape[1] :]
            model.save_pretrained(tmp_path)
            again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
            assert torch.equal(again(**batch).logits, model(**batch).logits)


def test_every_weight_that_is_missing_is_made(make_config: Factory, tmp_path: Path) -> None:
    """From a file that holds none of them: with the means and deviations of a model that was made anew.

    All but the vision tower, as transformers' CLIP itself has others then.
    """
    torch.manual_seed(0)
    fresh = LlavaMiniForConditionalGeneration(make_config())
    fresh.save_pretrained(tmp_path)
    save_file({"nothing": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    made = AutoModelForImageTextToText.from_pretrained(tmp_path)
    for name, tensor in fresh.state_dict().items():
        assert torch.isfinite(made.state_dict()[name]).all(), name
        if name.startswith("vision_tower."):
            continue
        own = made.state_dict()[name].float()
        spread = tensor.float().std(correction=0)
        near = float(6 * spread / tensor.numel() ** 0.5) + 1e-6
        torch.testing.assert_close(own.mean(), tensor.float().mean(), atol=near, rtol=0, msg=name)
        torch.testing.assert_close(own.std(correction=0), spread, atol=near, rtol=0, msg=name)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_is_switched_on_and_off(make_model: Factory, batch: dict[str, Any], reentrant: bool) -> None:
    model = make_model().train()
    found = []
    for switch in (None, lambda: model.gradient_checkpointing_enable({"use_reentrant": reentrant})):
        if switch is not None:
            switch()
        model.zero_grad()
        model(**batch).loss.backward()
        found.append({name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None})
    assert model.is_gradient_checkpointing
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


def test_a_copy_is_the_same_and_its_own(make_model: Factory, batch: dict[str, Any]) -> None:
    model = make_model()
    copied = copy.deepcopy(model)
    with torch.no_grad():
        expected = model(**batch).logits
        next(model.projector.parameters()).zero_()
        assert torch.equal(copied(**batch).logits, expected)


def test_inputs_may_be_given_in_order_and_without_a_mask(make_model: Factory, batch: dict[str, Any]) -> None:
    model = make_model()
    ordered = model(batch["input_ids"], batch["attention_mask"], batch["pixel_values"], batch["num_frames"])
    named = model(**{name: tensor for name, tensor in batch.items() if name != "labels"})
    assert torch.equal(ordered.logits, named.logits)
    with pytest.raises(ValueError, match="^input_ids are needed$"):
        model(pixel_values=batch["pixel_values"])
    kept = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}, logits_to_keep=2)
    assert torch.equal(kept.logits, named.logits[:, -2:])


def test_training_without_labels_must_say_what_prefusion_sees(make_model: Factory, batch: dict[str, Any]) -> None:
    """As with label smoothing of transformers' Trainer, which keeps the labels to itself: answers must stay hidden."""
    model = make_model().train()
    labels = batch.pop("labels")
    with pytest.raises(ValueError, match=r"^labels: in training they \(or instruction_mask\) are needed"):
        model(**batch)
    with torch.no_grad():
        hidden = model(**batch, instruction_mask=(labels == -100) & batch["attention_mask"].bool()).logits
        torch.testing.assert_close(hidden, model.eval()(**batch, labels=labels).logits, atol=1e-4, rtol=0)
    assert make_model(num_fusion_layers=0).train()(**batch).logits.shape[:2] == batch["input_ids"].shape
