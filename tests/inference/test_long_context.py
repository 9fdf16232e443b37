"""A model scaled for more tokens, and prompts read in parts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.refusals import refuses
from transformers import DynamicCache

from llava_mini.errors import UserError
from llava_mini.inference.cache import SessionCache
from llava_mini.inference.long_context import check_length, extend_context, prefill
from llava_mini.models import LlavaMiniForConditionalGeneration

Factory = Callable[..., Any]
KIND = pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn"])
TRAINED, WIDTH = 256, 48  # of make_model's language model


def embeds(tokens: int) -> torch.Tensor:
    return torch.randn(1, tokens, WIDTH, generator=torch.Generator().manual_seed(0))


def logits(model: Any, inputs_embeds: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.language_model(inputs_embeds=inputs_embeds).logits


@KIND
def test_twice_as_many_tokens_and_back(make_model: Factory, kind: str) -> None:
    model = make_model()
    short, before = embeds(30), logits(model, embeds(30))
    fusion = model.prefusion.rotary_emb.inv_freq.clone()
    extend_context(model, TRAINED, kind)  # what it reads anyway
    assert torch.equal(logits(model, short), before)
    extend_context(model, 2 * TRAINED, kind)
    assert not torch.allclose(logits(model, short), before, atol=1e-3)
    assert logits(model, embeds(2 * TRAINED)).isfinite().all()
    assert torch.equal(model.prefusion.rotary_emb.inv_freq, fusion)
    extend_context(model, TRAINED, kind)
    assert torch.equal(logits(model, short), before)


@KIND
def test_a_saved_model_keeps_it(make_model: Factory, tmp_path: Path, kind: str) -> None:
    model = make_model()
    fusion = model.prefusion.rotary_emb.inv_freq
    extend_context(model, 4 * TRAINED, kind)
    model.save_pretrained(tmp_path)
    loaded = LlavaMiniForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert loaded.config.context_scaling == {"kind": kind, "tokens": 4 * TRAINED}
    assert torch.equal(logits(loaded, embeds(30)), logits(model, embeds(30)))
    assert torch.equal(loaded.prefusion.rotary_emb.inv_freq, fusion)


def test_scaled_from_what_was_trained_and_not_twice(make_model: Factory) -> None:
    twice, once = make_model(), make_model()
    for tokens in (512, 1024):
        extend_context(twice, tokens, "linear")
    extend_context(once, 1024, "linear")
    assert torch.equal(logits(twice, embeds(30)), logits(once, embeds(30)))


def test_nonsense_changes_nothing(make_model: Factory) -> None:
    model = make_model()
    before = logits(model, embeds(30))
    for tokens, kind, key in ((TRAINED - 1, "yarn", "tokens"), (0, "linear", "tokens"), (1024, "ntk", "kind")):
        with refuses(f"context_scaling.{key}"):
            extend_context(model, tokens, kind)
    assert model.config.context_scaling is None
    assert torch.equal(logits(model, embeds(30)), before)


def test_a_prompt_that_is_too_long_is_one_line(make_model: Factory) -> None:
    model = make_model()
    check_length(model.config, TRAINED - 30, 20, 10)
    with pytest.raises(
        UserError,
        match=r"^257 tokens of prompt and answer, 11 of them of what is shown: the language model reads 256; "
        r"context_scaling\.tokens=257 \(extend",
    ):
        check_length(model.config, TRAINED - 30, 20, 11)
    extend_context(model, 2 * TRAINED)
    check_length(model.config, 2 * TRAINED - 30, 20, 10)
    with pytest.raises(UserError, match="513 tokens of prompt and answer, .*: the language model reads 512"):
        check_length(model.config, 2 * TRAINED - 30, 20, 11)


def test_what_is_too_long_by_itself_is_told_so(make_model: Factory) -> None:
    model = make_model()
    with refuses("question"):
        check_length(model.config, 250, 7, shown=10)
    with refuses("max_new_tokens"):
        check_length(model.config, 7, 250)


# Sums of 48 products of numbers of size 1 in float32, three layers deep, in another order.
@KIND
@pytest.mark.parametrize("chunk", [1, 37, 400, 1000])
def test_prefill_in_parts_is_prefill_at_once(make_model: Factory, kind: str, chunk: int) -> None:
    model = make_model()
    extend_context(model, 2 * TRAINED, kind)
    prompt = embeds(400)
    cache, whole = SessionCache(model.config), DynamicCache()
    prefill(model.language_model, prompt, cache, chunk)
    with torch.no_grad():
        model.language_model(inputs_embeds=prompt, past_key_values=whole)
    assert cache.get_seq_length() == 400
    more = {"inputs_embeds": embeds(3)}
    with torch.no_grad():
        after = [model.language_model(**more, past_key_values=each).logits for each in (cache, whole)]
    torch.testing.assert_close(after[0], after[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("bits", [8, 4])
def test_prefill_freezes_after_every_part(make_model: Factory, bits: int) -> None:
    model = make_model()
    cache = SessionCache(model.config, bits)
    held: list[int] = []
    model.language_model.get_decoder().register_forward_hook(lambda *_: held.append(cache.used_bytes))
    prefill(model.language_model, embeds(200), cache, chunk=20)
    assert cache.layers[0].frozen_tokens == 200
    frozen = cache.used_bytes // 200
    part = 20 * 3 * 2 * 2 * 12 * 4  # 20 tokens x 3 layers x keys and values x 2 heads x 12 channels x 4 bytes
    assert held == [20 * i * frozen + part for i in range(10)]


def test_prefill_makes_no_logits_and_may_have_nothing_to_do(make_model: Factory) -> None:
    model = make_model()
    model.get_output_embeddings().register_forward_hook(lambda *_: pytest.fail("logits were made"))
    cache = SessionCache(model.config)
    for tokens, held in ((0, 0), (50, 50), (0, 50)):
        prefill(model.language_model, embeds(50)[:, :tokens], cache, chunk=20)
        assert cache.get_seq_length() == held
