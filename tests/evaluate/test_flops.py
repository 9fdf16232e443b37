"""The counted FLOPs are those of a formula written from the architecture, and counting leaves the model as it was."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from llava_mini.batch import VLMBatch
from llava_mini.evaluate.flops import prefill_flops
from llava_mini.models import LlavaMiniConfig

# What the formula leaves out: rotary angles (a product of length x half a head), interpolated query positions.
TOLERANCE = 0.01


@pytest.fixture
def question(make_sample: Callable, collate: Callable) -> Callable[[Any], VLMBatch]:
    """question(model): one image and one question without an answer."""

    def make(model: Any) -> VLMBatch:
        return VLMBatch(**collate(model, [make_sample(2, answer=0)]))

    return make


def decoder_layer(config: Any, length: int, rows: int | None = None, seen: int = 0) -> int:
    """Multiply-adds of a layer: keys and values of all entries; for `rows` of them queries, attention, output, MLP."""
    width, keys = config.hidden_size, config.hidden_size * config.num_key_value_heads // config.num_attention_heads
    rows = length if rows is None else rows
    attention = rows * 2 * width * width + 2 * rows * (seen + length) * width
    return 2 * length * width * keys + attention + 3 * rows * width * config.intermediate_size


def fusion_layers(config: LlavaMiniConfig, seen: int, tokens: int, said: int) -> int:
    """Patches and compressed tokens first, of which the last layer computes tokens alone; then text against them."""
    text, count = config.text_config, config.num_fusion_layers
    if count == 0:
        return 0
    last = decoder_layer(text, seen, rows=tokens)
    return (count - 1) * decoder_layer(text, seen) + last + count * decoder_layer(text, said, seen=seen)


def multiply_adds(config: LlavaMiniConfig, tokens: int, length: int) -> int:
    """Of a prefill of `length` tokens, `tokens` of which stand for the image (release order, query compression)."""
    vision, text = config.vision_config, config.text_config
    patches, narrow, wide = (vision.image_size // vision.patch_size) ** 2, vision.hidden_size, text.hidden_size
    entries = patches + 1
    layer = entries * narrow * (4 * narrow + 2 * vision.intermediate_size) + 2 * entries * entries * narrow
    read = config.vision_feature_layer % (vision.num_hidden_layers + 1)  # layers behind the one that is read do not run
    tower = patches * 3 * vision.patch_size**2 * narrow + read * layer
    compressor = 2 * tokens * narrow * narrow + 2 * patches * narrow * narrow + 2 * tokens * patches * narrow
    projector = (patches + tokens) * (narrow * wide + wide * wide)
    fusion = fusion_layers(config, patches + tokens, tokens, length - tokens)
    decoder = text.num_hidden_layers * decoder_layer(text, length) + wide * text.vocab_size
    return tower + compressor + projector + fusion + decoder


@pytest.mark.parametrize("fusion", [0, 2])
@pytest.mark.parametrize("side", [1, 3])
def test_the_count_is_the_formulas(make_model: Callable, question: Callable, compressors: dict, fusion: int, side: int):
    model = make_model(compressor={**compressors["query"], "C": side}, num_fusion_layers=fusion)
    batch = question(model)
    expected = 2 * multiply_adds(model.config, side**2, batch.input_ids.shape[1])
    assert prefill_flops(model, batch) == pytest.approx(expected, rel=TOLERANCE)


def test_fewer_tokens_cost_less_than_all_patches(make_model: Callable, question: Callable, compressors: dict):
    def cost(compressor: dict[str, Any]) -> int:
        model = make_model(compressor=compressor, num_fusion_layers=0)
        return prefill_flops(model, question(model))

    costs = [cost({**compressors["query"], "C": 1}), cost({**compressors["query"], "C": 2}), cost(compressors["none"])]
    assert costs == sorted(costs) and costs[0] < costs[1] < costs[2]


def test_labels_do_not_count_and_the_model_stays_as_it_was(make_model: Callable, question: Callable):
    model = make_model().train()
    model.vision_tower.requires_grad_(False)
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    batch = question(model)
    first = prefill_flops(model, batch)
    batch.labels[:, -1] = batch.input_ids[:, -1]
    assert prefill_flops(model, batch) == first
    assert trained == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert any(trained.values()) and not all(trained.values())
    assert model.training
    with pytest.raises(ValueError, match="placeholders"):
        prefill_flops(model, replace(batch, input_ids=batch.input_ids[:, :3]))
    assert trained == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
