"""SessionCache: without bits the very numbers of transformers' own cache; with bits close, small, and whole again."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.refusals import refuses
from transformers import DynamicCache

from llava_mini.inference.cache import BLOCK, SessionCache, capacity
from llava_mini.inference.quantize import entry_bytes

Factory = Callable[..., Any]
LAYERS, HEADS, HEAD_DIM, WIDTH = 3, 2, 12, 48  # of make_model's language model
TOKEN_BYTES = LAYERS * 2 * HEADS * HEAD_DIM * 4


@pytest.fixture
def embeds() -> torch.Tensor:
    return torch.randn(1, 90, WIDTH, generator=torch.Generator().manual_seed(0))


def parts(model: Any, cache: Any, embeds: torch.Tensor, *lengths: int) -> torch.Tensor:
    """Logits of `embeds` read in parts of these lengths."""
    with torch.no_grad():
        chunks = [model.language_model(inputs_embeds=part, past_key_values=cache).logits for part in
                  embeds.split(list(lengths), dim=1)]  # fmt: skip
    return torch.cat(chunks, dim=1)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_as_the_cache_of_transformers(
    make_model: Factory, make_text_config: Factory, embeds: torch.Tensor, family: str
) -> None:
    """Prefill in chunks, tokens one by one, cut, a second question: bit for bit."""
    changes = {"sliding_window": 40} if family == "mistral" else {}
    model = make_model(text_config=make_text_config(family, **changes))
    ours, theirs = SessionCache(model.config), DynamicCache()
    lengths = (30, 1, 40, *([1] * 19))
    assert torch.equal(parts(model, ours, embeds, *lengths), parts(model, theirs, embeds, *lengths))
    assert ours.get_seq_length() == 90
    ours.cut(70)
    theirs.crop(-20)
    second = embeds[:, :20].flip(1)
    assert torch.equal(parts(model, ours, second, 18, 1, 1), parts(model, theirs, second, 18, 1, 1))


def test_generate_continues_after_what_is_stored(make_model: Factory, make_sample: Factory, collate: Factory) -> None:
    """Our model from the start, and its language model alone behind a prompt that our model read."""
    model = make_model()
    batch = collate(model, [make_sample(1, frames=3)], answers=False)
    options = {"do_sample": False, "max_new_tokens": 6}
    expected = model.generate(**batch, **options)
    cache = SessionCache(model.config)
    assert torch.equal(model.generate(**batch, past_key_values=cache, **options), expected)
    prompt = batch["input_ids"].shape[1]
    assert cache.get_seq_length() == prompt + 5  # the last word is not read again
    cache.cut(prompt)
    first, rest = expected[:, prompt : prompt + 1], expected[:, prompt + 1 :]
    # transformers wants embeddings of the whole sequence and drops those of what is held, whatever they are.
    embeds = torch.cat([torch.zeros(1, prompt, WIDTH), model.get_input_embeddings()(first)], dim=1)
    said = model.language_model.generate(
        inputs_embeds=embeds, past_key_values=cache, do_sample=False, max_new_tokens=rest.shape[1]
    )
    assert torch.equal(said, rest)


# A step of 8 bits is 1/255 of an entry's range, of 4 bits 1/15; logits here are of size 1 and have passed three layers.
@pytest.mark.parametrize(("bits", "tolerance"), [(8, 0.03), (4, 0.5)])
def test_few_bits_are_close(make_model: Factory, embeds: torch.Tensor, bits: int, tolerance: float) -> None:
    model = make_model()
    cache = SessionCache(model.config, bits)
    exact = parts(model, DynamicCache(), embeds, 60, 30)[:, 60:]
    parts(model, cache, embeds[:, :60], 40, 20)
    cache.freeze()
    assert (cache.layers[0].frozen_tokens, cache.get_seq_length()) == (60, 60)
    found = parts(model, cache, embeds[:, 60:], 10, *([1] * 20))
    moved = (found - exact).abs()
    assert 1e-4 < moved.mean() < tolerance
    cache.cut(60)  # a second question finds the same beginning
    assert torch.equal(parts(model, cache, embeds[:, 60:], 10, *([1] * 20)), found)


@pytest.mark.parametrize("bits", [8, 4])
def test_parts_that_are_frozen_one_by_one(make_model: Factory, embeds: torch.Tensor, bits: int) -> None:
    """Entries are quantized by themselves: what is frozen again does not change, and cutting into it works."""
    model = make_model()
    cache, whole = SessionCache(model.config, bits), SessionCache(model.config, bits)
    for chunk in embeds.split(30, dim=1):
        parts(model, cache, chunk, 30)
        cache.freeze()
    frozen = [rows.tensor.clone() for rows in cache.layers[0].rows()[2:]]
    cache.freeze()
    cache.cut(30)
    assert cache.layers[0].frozen_tokens == 30
    parts(model, whole, embeds[:, :30], 30)
    whole.freeze()
    assert torch.equal(parts(model, cache, embeds[:, 30:50], 20), parts(model, whole, embeds[:, 30:50], 20))
    for before, after in zip(frozen, cache.layers[0].rows()[2:], strict=True):
        assert torch.equal(before[:, :, :30], after.tensor)


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_bytes(make_model: Factory, embeds: torch.Tensor, bits: int | None) -> None:
    model = make_model()
    cache = SessionCache(model.config, bits)
    parts(model, cache, embeds, 90)
    assert cache.used_bytes == 90 * TOKEN_BYTES
    cache.freeze()
    token = TOKEN_BYTES if bits is None else LAYERS * 2 * HEADS * entry_bytes(HEAD_DIM, bits)
    assert cache.used_bytes == 90 * token
    assert cache.held_bytes == capacity(90) * token
    parts(model, cache, embeds[:, :1], 1)
    assert cache.used_bytes == 90 * token + TOKEN_BYTES


def test_growing_copies_little_and_keeps_little_room() -> None:
    """A long prompt token by token: the buffer is made anew a few dozen times, and is never an eighth too large."""
    cache = SessionCache(_Config())
    made, last = 0, None
    for length in range(1, 10_001):
        keys, _ = cache.update(*[torch.full((1, 1, 1, 2), float(length))] * 2, layer_idx=0)
        made += keys.untyped_storage().data_ptr() != last
        last = keys.untyped_storage().data_ptr()
        assert cache.held_bytes <= 16 * (length + length // 8 + BLOCK)
    assert made < 50
    assert torch.equal(keys[0, 0, :, 0], torch.arange(1.0, 10_001))
    cache.cut(100)
    assert cache.held_bytes <= 16 * (100 + 100 // 8 + BLOCK)


class _Config:
    """One layer."""

    num_hidden_layers = 1

    def get_text_config(self, decoder: bool) -> "_Config":
        return self


def test_with_and_without_inference_mode(make_model: Factory, embeds: torch.Tensor) -> None:
    model = make_model()
    cache = SessionCache(model.config, 8)
    with torch.inference_mode():
        model.language_model(inputs_embeds=embeds[:, :30], past_key_values=cache)
        cache.freeze()
        model.language_model(inputs_embeds=embeds[:, 30:32], past_key_values=cache)
    parts(model, cache, embeds[:, 32:60], 28)
    cache.freeze()
    assert cache.layers[0].frozen_tokens == 60


def test_reset(make_model: Factory, embeds: torch.Tensor) -> None:
    model = make_model()
    cache = SessionCache(model.config, 8)
    first = parts(model, cache, embeds, 90)
    cache.freeze()
    cache.reset()
    assert cache.get_seq_length() == 0
    assert torch.equal(parts(model, cache, embeds, 90), first)


def test_what_cannot_be(make_model: Factory, embeds: torch.Tensor) -> None:
    model = make_model()
    with refuses("kv_bits", 3, "8, 4 and none"):
        SessionCache(model.config, 3)
    cache = SessionCache(model.config)
    with pytest.raises(ValueError, match="one conversation, the batch has 2"):
        parts(model, cache, embeds.repeat(2, 1, 1), 90)
    with pytest.raises(ValueError, match="stores no gradients"):
        model.language_model(inputs_embeds=embeds, past_key_values=SessionCache(model.config))
    parts(model, cache, embeds, 90)
    for length in (-1, 91):
        with pytest.raises(ValueError, match=f"cut to {length} tokens, 90 are held"):
            cache.cut(length)
    with pytest.raises(ValueError, match="given as a negative number"):
        cache.crop(3)
