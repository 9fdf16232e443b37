"""Models of random weights: all ways have the same ones and answer alike, and shapes are those of conf/."""

from collections.abc import Callable

import pytest
import torch

from llava_mini.bench.flop_count import Work
from llava_mini.bench.subjects import (
    OURS,
    RELEASED,
    TRANSFORMERS,
    UNCOMPRESSED,
    FollowUp,
    Models,
    card_bytes,
    further_tokens,
    mid_size,
    model_config,
    on_meta,
)
from llava_mini.config import resolve
from llava_mini.models import LlavaMiniConfig
from llava_mini.settings import conf

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(make_config: Callable[..., LlavaMiniConfig]) -> Models:
    torch.manual_seed(0)
    return Models(make_config(image_token_id=98), CPU, torch.float32, prepacked=True)


def test_presets_are_read_as_the_config_reads_them() -> None:
    resolved = resolve(
        ["model=llava_mini_llama31_8b", "compressor.C=2", "hardware=rtx4090_24gb", "trainer.max_steps=1"]
    )
    config = model_config("llava_mini_llama31_8b", C=2)
    assert config.vision_config.to_dict().items() >= resolved.model.vision_config.items()
    assert config.text_config.to_dict().items() >= resolved.model.text_config.items()
    assert config.compressor == resolved.compressor.spec()
    assert config.num_fusion_layers == resolved.fusion.num_layers
    assert card_bytes("rtx4090_24gb") == int(resolved.hardware.memory_gib * 2**30)
    assert conf("compressor/none") == resolve(["compressor=none"]).compressor.spec()
    assert conf("finetune/dora") == resolve(["finetune=dora"]).to_dict()["finetune"]
    assert conf("hardware/a100_80gb_x8")["memory"]["frozen_dtype"] == "bfloat16"


def test_the_shape_is_7b() -> None:
    model = on_meta(model_config("llava_mini_vicuna_7b"))
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(7.87e9, rel=0.01)


@torch.no_grad()
def test_one_set_of_weights(models: Models) -> None:
    """Transformers' LLaVA and ours without compression give the same logits, as do both orders of LLaVA-Mini."""
    work = Work(text_tokens=5)
    theirs = models.prompt(TRANSFORMERS, work)
    pixels = theirs["pixel_values"][:, None]
    plain = {**models.prompt(UNCOMPRESSED, work), "input_ids": theirs["input_ids"], "pixel_values": pixels}
    expected = models.of(TRANSFORMERS)(**theirs).logits
    torch.testing.assert_close(models.of(UNCOMPRESSED)(**plain).logits, expected)
    inputs = models.prompt(OURS, work)
    torch.testing.assert_close(models.of(RELEASED)(**inputs).logits, models.of(OURS)(**inputs).logits)


@torch.no_grad()
def test_a_later_question_gives_what_the_whole_prompt_gives(models: Models) -> None:
    torch.manual_seed(1)
    later = FollowUp(models, Work(frames=3, text_tokens=5))
    torch.manual_seed(1)
    inputs = models.prompt(OURS, Work(frames=3, text_tokens=5))
    expected = models.of(OURS)(**inputs, logits_to_keep=1).logits
    for _ in range(2):
        torch.testing.assert_close(later.ask().logits, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_shared_system_text_comes_before_the_frames(models: Models) -> None:
    torch.manual_seed(1)
    later = FollowUp(models, Work(frames=3, text_tokens=5), shared=2)
    torch.manual_seed(1)
    inputs = models.prompt(OURS, Work(frames=3, text_tokens=5))
    ids = inputs["input_ids"]
    inputs["input_ids"] = torch.cat([ids[:, -5:-3], ids[:, :-5], ids[:, -3:]], dim=1)
    expected = models.of(OURS)(**inputs, logits_to_keep=1).logits
    for _ in range(2):
        torch.testing.assert_close(later.ask().logits, expected, atol=1e-5, rtol=1e-5)
    assert models.later_flops(Work(text_tokens=5), 2) < models.later_flops(Work(text_tokens=5), 0)


@torch.no_grad()
def test_decoding_leaves_the_cache_as_it_was(models: Models) -> None:
    model = models.of(OURS)
    cache = model(**models.prompt(OURS, Work(text_tokens=5)), use_cache=True).past_key_values
    length = cache.get_seq_length()
    further_tokens(model, cache, 3)
    assert cache.get_seq_length() == length


def test_the_shape_of_the_requirement() -> None:
    """About 331 against 64 GFLOP."""
    with torch.device("meta"):
        models = Models(mid_size(), torch.device("meta"), torch.float32)
    assert models.flops(UNCOMPRESSED, Work()) / 1e9 == pytest.approx(331, rel=0.01)
    assert models.flops(OURS, Work()) / 1e9 == pytest.approx(64, rel=0.02)
