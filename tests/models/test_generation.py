"""Generation: the cache changes nothing, a padded batch is each prompt alone, and frames go with their sample.

Weights are random, so the most likely token wins by a wide margin against rounding and ids can be compared exactly.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

Factory = Callable[..., Any]
Specs = dict[str, dict[str, Any]]
COMPRESSOR = pytest.mark.parametrize("compressor", ["query", "avg_pool", "uniform", "none", "zero"])
ORDER = pytest.mark.parametrize("order", ["release", "paper"])
LENGTH = 6


def new_tokens(model: Any, batch: dict[str, Any], **options: Any) -> torch.Tensor:
    """[B, LENGTH] ids behind the prompt; options go to `generate`."""
    options = {"do_sample": False, "max_new_tokens": LENGTH, **options}
    return model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]


@pytest.fixture
def samples(make_sample: Factory) -> list[Any]:
    """An image, an HD image, a video and text alone, of different lengths."""
    return [make_sample(1), make_sample(2, views=5), make_sample(3, frames=3), make_sample(4, frames=0)]


@ORDER
@COMPRESSOR
def test_cache_and_padding_change_nothing(
    make_model: Factory,
    collate: Factory,
    samples: list[Any],
    compressors: Specs,
    orders: Specs,
    compressor: str,
    order: str,
) -> None:
    model = make_model(compressor=compressors[compressor], **orders[order])
    batch = collate(model, samples, padding_side="left", answers=False)
    together = new_tokens(model, batch)
    assert torch.equal(new_tokens(model, batch, use_cache=False), together)
    for i, sample in enumerate(samples):
        alone = collate(model, [sample], answers=False)
        assert torch.equal(new_tokens(model, alone)[0], together[i])
    assert len({tuple(row) for row in together.tolist()}) >= 3  # prompts have answers of their own


@pytest.mark.parametrize("num_fusion_layers", [0, 1, 3])
def test_without_and_with_more_fusion(
    make_model: Factory, collate: Factory, samples: list[Any], num_fusion_layers: int
) -> None:
    model = make_model(num_fusion_layers=num_fusion_layers)
    batch = collate(model, samples, padding_side="left", answers=False)
    assert torch.equal(new_tokens(model, batch, use_cache=False), new_tokens(model, batch))


@pytest.mark.parametrize("family", ["mistral", "qwen2"])
def test_other_families(
    make_model: Factory, make_text_config: Factory, collate: Factory, samples: list[Any], family: str
) -> None:
    model = make_model(text_config=make_text_config(family))
    batch = collate(model, samples, padding_side="left", answers=False)
    assert torch.equal(new_tokens(model, batch, use_cache=False), new_tokens(model, batch))


@ORDER
@torch.no_grad()
def test_training_predicts_what_generation_says(
    make_model: Factory, make_sample: Factory, collate: Factory, orders: Specs, order: str
) -> None:
    """Teacher forcing on the generated answer: pre-fusion hides answers in training and does not see them here."""
    model = make_model(**orders[order])
    sample = make_sample(1, frames=2)
    prompt = collate(model, [sample], answers=False)
    said = new_tokens(model, prompt)
    ids = torch.cat([prompt["input_ids"], said], dim=1)
    labels = torch.cat([torch.full_like(prompt["input_ids"], -100), said], dim=1)
    training = {**prompt, "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    predicted = model(**training).logits.argmax(-1)[:, -LENGTH - 1 : -1]
    assert torch.equal(predicted, said)


def test_the_cache_sees_frames_once(make_model: Factory, collate: Factory, samples: list[Any]) -> None:
    model = make_model()
    views: list[int] = []
    model.vision_tower.register_forward_pre_hook(
        lambda _, args, given: views.append(len(given["pixel_values"])), with_kwargs=True
    )
    new_tokens(model, collate(model, samples, padding_side="left", answers=False))
    assert sum(views) == sum(len(frame) for sample in samples for frame in sample.frames)


def test_sampling_with_a_seed_is_reproducible(make_model: Factory, collate: Factory, samples: list[Any]) -> None:
    model = make_model()
    batch = collate(model, samples, padding_side="left", answers=False)
    drawn = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        drawn.append(new_tokens(model, batch, do_sample=True, num_return_sequences=2))
    assert drawn[0].shape == (8, LENGTH)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0][0], drawn[0][1])  # two answers to one prompt


@pytest.mark.parametrize("use_cache", [True, False])
def test_beams_with_videos(make_model: Factory, collate: Factory, samples: list[Any], use_cache: bool) -> None:
    """Every beam of a sample reads that sample's frames, in their order."""
    model = make_model()
    options: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 2, "use_cache": use_cache}
    together = new_tokens(model, collate(model, samples, padding_side="left", answers=False), **options)
    assert together.shape == (8, LENGTH)
    for i, sample in enumerate(samples):
        alone = collate(model, [sample], answers=False)
        assert torch.equal(new_tokens(model, alone, **options), together[2 * i : 2 * i + 2])
    greedy = new_tokens(model, collate(model, samples, padding_side="left", answers=False))
    assert not torch.equal(greedy, together[::2])  # the beams found something else


def test_features_instead_of_pixels(make_model: Factory, collate: Factory, samples: list[Any]) -> None:
    model = make_model()
    batch = collate(model, samples, padding_side="left", answers=False)
    with torch.no_grad():
        features = model.encode(batch["pixel_values"], batch["num_views"])
    stored = {name: tensor for name, tensor in batch.items() if name != "pixel_values"} | {"image_features": features}
    for beams in (1, 2):
        expected = new_tokens(model, batch, num_beams=beams)
        assert torch.equal(new_tokens(model, stored, num_beams=beams), expected)


def test_prompts_are_taken_by_every_name(make_model: Factory, make_sample: Factory, collate: Factory) -> None:
    model = make_model()
    batch = collate(model, [make_sample(1)], answers=False)
    expected = model.generate(**batch, do_sample=False, max_new_tokens=LENGTH)
    ids = batch.pop("input_ids")
    options = {"do_sample": False, "max_new_tokens": LENGTH, "use_cache": False}
    assert torch.equal(model.generate(ids, **batch, **options), expected)
    assert torch.equal(model.generate(inputs=ids, **batch, **options), expected)


def test_the_image_token_is_never_said(make_model: Factory, make_sample: Factory, collate: Factory) -> None:
    """A tokenizer that knows the placeholder leaves it in the vocabulary, where it could be the likeliest token."""
    model = make_model(image_token_id=98)
    batch = collate(model, [make_sample(1)], answers=False)
    with torch.no_grad():
        first = model(**batch).logits[:, -1].argmax(-1)
        head = model.get_output_embeddings().weight
        head[98] = 2 * head[int(first)]
        assert int(model(**batch).logits[:, -1].argmax(-1)) == 98
    assert int(new_tokens(model, batch)[0, 0]) == int(first)
    assert 98 not in new_tokens(model, batch, num_beams=2)
    assert int(new_tokens(model, batch, suppress_tokens=[int(first)])[0, 0]) not in (98, int(first))


def test_placeholders_without_an_image(make_model: Factory, make_sample: Factory, collate: Factory) -> None:
    model = make_model()
    batch = collate(model, [make_sample(1)], answers=False)
    for name in ("pixel_values", "num_frames"):
        del batch[name]
    with pytest.raises(ValueError, match="4 image placeholders and no image"):
        new_tokens(model, batch)
