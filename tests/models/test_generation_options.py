"""What transformers' `generate` can do besides greedy words: each option gives the same words, or is refused by name.

As transformers' common generation tests check its own models; `docs/transformers.md` lists them.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.refusals import refuses
from transformers import DynamicCache, LlamaForCausalLM, StaticCache, TextStreamer

from llava_mini.errors import UserError

Factory = Callable[..., Any]
LENGTH = 6
GREEDY = {"do_sample": False, "max_new_tokens": LENGTH}


@pytest.fixture(scope="module")
def model(make_model: Factory) -> Any:
    return make_model()


@pytest.fixture
def batch(model: Any, make_sample: Factory, collate: Factory) -> dict[str, Any]:
    """An image and a video, the shorter one padded."""
    return collate(model, [make_sample(1), make_sample(2, frames=2)], padding_side="left", answers=False)


@pytest.fixture
def one(model: Any, make_sample: Factory, collate: Factory) -> dict[str, Any]:
    return collate(model, [make_sample(2, frames=2)], answers=False)


@pytest.fixture
def text(model: Any, make_sample: Factory, collate: Factory) -> dict[str, Any]:
    return collate(model, [make_sample(4, frames=0)], answers=False)


def test_outputs_of_every_step(make_model: Factory, batch: dict[str, Any]) -> None:
    model = make_model()
    model.set_attn_implementation("eager")
    wanted = ("output_attentions", "output_hidden_states", "output_scores", "output_logits")
    found = model.generate(**batch, **GREEDY, **dict.fromkeys(wanted, True), return_dict_in_generate=True)
    prompt, layers = batch["input_ids"].shape[1], 3
    assert torch.equal(found.sequences, model.generate(**batch, **GREEDY))
    assert torch.equal(torch.stack(found.logits, dim=1).argmax(-1), found.sequences[:, prompt:])
    assert len(found.scores) == len(found.attentions) == len(found.hidden_states) == LENGTH
    for step in range(LENGTH):
        rows, entries = (prompt, prompt) if step == 0 else (1, prompt + step)
        assert [tuple(each.shape) for each in found.attentions[step]] == [(2, 4, rows, entries)] * layers
        assert [tuple(each.shape) for each in found.hidden_states[step]] == [(2, rows, 48)] * (layers + 1)
    torch.testing.assert_close(found.attentions[0][0].sum(-1)[1], torch.ones(4, prompt))


def test_beams_tell_their_scores(model: Any, batch: dict[str, Any]) -> None:
    options = {"output_scores": True, "return_dict_in_generate": True, "num_return_sequences": 2}
    found = model.generate(**batch, **GREEDY, num_beams=2, **options)
    assert found.sequences.shape[0] == 4 and bool((found.sequences_scores[::2] >= found.sequences_scores[1::2]).all())
    drawn = model.generate(**batch, do_sample=True, max_new_tokens=LENGTH, num_beams=2)
    assert drawn.shape[0] == 2


def test_an_assistant_changes_no_word(make_model: Factory, model: Any, one: dict[str, Any]) -> None:
    """It reads the frames too, once, whether its guesses are right (it is the model itself) or not."""
    expected = model.generate(**one, **GREEDY)
    for seed in (0, 3):
        assistant = make_model(seed=seed)
        views: list[int] = []
        assistant.vision_tower.register_forward_pre_hook(lambda *_, seen=views: seen.append(1))
        assert torch.equal(model.generate(**one, **GREEDY, assistant_model=assistant), expected)
        assert len(views) == 1


def test_a_text_model_may_assist_with_text(make_text_config: Factory, model: Any, one: Any, text: Any) -> None:
    assistant = LlamaForCausalLM(make_text_config())
    assert torch.equal(model.generate(**text, **GREEDY, assistant_model=assistant), model.generate(**text, **GREEDY))
    with refuses("assistant_model", assistant, f"a {type(model).__name__}"):
        model.generate(**one, **GREEDY, assistant_model=assistant)


def test_an_assistant_with_other_tokens_is_refused(make_model: Factory, compressors: Any, model: Any, one: Any) -> None:
    for changes in ({"compressor": compressors["none"]}, {"image_token_id": 98}):
        with refuses("assistant_model"):
            model.generate(**one, **GREEDY, assistant_model=make_model(**changes))


def test_prompt_lookup_changes_no_word(model: Any, one: dict[str, Any]) -> None:
    assert torch.equal(model.generate(**one, **GREEDY, prompt_lookup_num_tokens=2), model.generate(**one, **GREEDY))


def test_caches_change_no_word(model: Any, batch: dict[str, Any]) -> None:
    expected = model.generate(**batch, **GREEDY)
    for name in ("dynamic", "static"):
        assert torch.equal(model.generate(**batch, **GREEDY, cache_implementation=name), expected), name
    for cache in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=40)):
        assert torch.equal(model.generate(**batch, **GREEDY, past_key_values=cache), expected)


@pytest.mark.parametrize("static", [False, True])
def test_an_answer_continues_after_its_cache(model: Any, batch: dict[str, Any], static: bool) -> None:
    cache = StaticCache(config=model.config, max_cache_len=40) if static else None
    options = {"do_sample": False, "max_new_tokens": 3}
    first = model.generate(**batch, **options, past_key_values=cache, return_dict_in_generate=True)
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, 3), value=1)
    held = {"input_ids": first.sequences, "attention_mask": mask, "past_key_values": first.past_key_values}
    assert torch.equal(model.generate(**held, **options), model.generate(**batch, **GREEDY))


def cached(model: Any, batch: dict[str, Any], length: int) -> DynamicCache:
    """The cache of the first `length` tokens, whose frames are those of the whole batch."""
    cache = DynamicCache(config=model.config)
    parts = {name: batch[name][:, :length] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        model(**{**batch, **parts}, past_key_values=cache, use_cache=True)
    return cache


@pytest.mark.parametrize("compressor", ["query", "zero"])
def test_a_next_question_after_a_cache(make_model: Factory, compressors: Any, make_sample, collate, compressor) -> None:
    """Given the frames and an instruction_mask, pre-fusion reads the new question as it would without a cache."""
    model = make_model(compressor=compressors[compressor])
    batch = collate(model, [make_sample(2, frames=2)], answers=False)
    held = batch["input_ids"].shape[1] - 2
    given = {"instruction_mask": torch.ones_like(batch["input_ids"])}
    found = model.generate(**batch, **given, **GREEDY, past_key_values=cached(model, batch, held))
    assert torch.equal(found, model.generate(**batch, **GREEDY))
    with pytest.raises(UserError, match="^past_key_values holds frames that are given again: leave them out .* or say"):
        model.generate(**batch, **GREEDY, past_key_values=cached(model, batch, held))


def test_a_new_image_after_a_cache(model: Any, make_sample: Factory, collate: Factory) -> None:
    """Without pre-fusion's own text before it: only what is new goes with the new image."""
    first = collate(model, [make_sample(4, frames=0)], answers=False)
    second = collate(model, [make_sample(1)], answers=False)
    whole = {**second, **{name: torch.cat([first[name], second[name]], dim=1) for name in first}}
    mask = torch.cat([torch.zeros_like(first["input_ids"]), torch.ones_like(second["input_ids"])], dim=1)
    length = first["input_ids"].shape[1]
    for given in (whole, {**whole, "input_ids": second["input_ids"]}):
        cache = cached(model, first, length)
        with torch.no_grad():
            expected = model.generate(**whole, instruction_mask=mask, **GREEDY)[:, whole["input_ids"].shape[1] :]
        found = model.generate(**given, **GREEDY, past_key_values=cache)
        assert torch.equal(found[:, given["input_ids"].shape[1] :], expected)


def test_guidance_is_away_from_what_is_said_without_the_prompt(model: Any, one: dict[str, Any]) -> None:
    options = {"do_sample": False, "max_new_tokens": 1, "output_scores": True, "return_dict_in_generate": True}
    plain = model.generate(**one, **options).scores[0].log_softmax(-1)
    guided = model.generate(**one, **options, guidance_scale=2.0).scores[0]
    with torch.no_grad():
        alone = model(input_ids=one["input_ids"][:, -1:]).logits[:, -1].log_softmax(-1)
    torch.testing.assert_close(guided, 2 * (plain - alone) + alone, atol=1e-4, rtol=0)


def test_a_streamer_gets_every_word(model: Any, one: dict[str, Any]) -> None:
    class Kept(TextStreamer):
        def __init__(self) -> None:
            self.words: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.words += value.flatten().tolist()

        def end(self) -> None:
            self.words.append(-1)

    streamer = Kept()
    said = model.generate(**one, **GREEDY, streamer=streamer)
    assert streamer.words == [*said[0].tolist(), -1]


def test_without_a_mask_or_a_prompt(model: Any, one: dict[str, Any]) -> None:
    unmasked = {name: tensor for name, tensor in one.items() if name != "attention_mask"}
    assert torch.equal(model.generate(**unmasked, **GREEDY), model.generate(**one, **GREEDY))
    assert model.generate(**GREEDY)[:, 0].tolist() == [1]  # the token that begins a text


def test_prefill_in_parts_is_for_text(model: Any, batch: dict[str, Any], text: dict[str, Any]) -> None:
    expected = model.generate(**text, **GREEDY)
    assert torch.equal(model.generate(**text, **GREEDY, prefill_chunk_size=2), expected)
    with torch.no_grad():
        features = model.encode(batch["pixel_values"])
    stored = {name: tensor for name, tensor in batch.items() if name != "pixel_values"} | {"image_features": features}
    for given in (batch, stored):
        with refuses("prefill_chunk_size", 3, "None"):
            model.generate(**given, **GREEDY, prefill_chunk_size=3)
    assert torch.equal(model.generate(**batch, **GREEDY, prefill_chunk_size=100), model.generate(**batch, **GREEDY))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_implementation": "offloaded"}, "cache_implementation=offloaded: this is for GPUs"),
        ({"cache_implementation": "offloaded_static"}, "cache_implementation=offloaded_static: this is for GPUs"),
        ({"cache_implementation": "paged"}, r"continuous batching \(generate_batch, cache_implementation='paged'\)"),
        ({"assistant_early_exit": 1}, "assistant_early_exit=1"),
        ({"inputs_embeds": torch.zeros(1, 3, 48)}, "inputs_embeds"),
        ({"pixel_value": 1}, "pixel_value"),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, "Group Beam Search"),
        ({"num_beams": 4, "force_words_ids": [[5]]}, "Constrained Beam Search"),
        ({"penalty_alpha": 0.5, "top_k": 4}, "Contrastive Search"),
        ({"dola_layers": "low"}, "Dola Generation"),
    ],
)
def test_what_cannot_be_had_is_one_line(model: Any, one: dict[str, Any], options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        model.generate(**one, **GREEDY, **options)
    assert "\n" not in str(refused.value)


def test_requests_of_ids_alone_are_refused(model: Any) -> None:
    with pytest.raises(UserError, match="continuous batching .* takes no frames; allowed is generate with a batch"):
        model.generate_batch(inputs=[[5, 6]])
