"""The arithmetic of a session's bytes, against figures written out by hand and against what a cache really takes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from llava_mini.errors import UserError
from llava_mini.inference.cache import SessionCache
from llava_mini.inference.memory import INT8, FrameShape, KVShape, check_frames, largest_frames
from llava_mini.models import LlavaMiniConfig

Factory = Callable[..., Any]
HALF = torch.float16


def config(kv_heads: int) -> LlavaMiniConfig:
    """CLIP ViT-L/14-336 (24 x 24 = 576 patches, 1024 wide) and a Llama of 32 layers, 4096 wide, heads of 128."""
    text = {
        "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": kv_heads,
    }  # fmt: skip
    return LlavaMiniConfig(text_config=text, num_fusion_layers=4)


def test_vicuna_7b() -> None:
    kv = KVShape.of(config(32).text_config)
    assert kv.token_bytes(HALF) == 524_288  # 2 x 32 layers x 32 heads x 128 channels x 2 bytes
    assert kv.token_bytes(HALF, 8) == 270_336  # 2 x 32 x 32 x (128 + 2 + 2)
    assert kv.token_bytes(HALF, 4) == 147_456  # 2 x 32 x 32 x (64 + 2 groups x 4)
    frame = FrameShape.of(config(32), tokens=1)
    assert frame.kv_bytes(HALF) == 37_814_272  # (576 + 1) entries x 2 x 4 layers x 32 heads x 128 x 2 bytes
    assert frame.kv_bytes(torch.float32) == 75_628_544
    assert frame.kv_bytes(INT8) == 19_497_984  # 577 x 2 x 4 x 32 x (128 + 4)
    assert frame.features_bytes(HALF) == 1_179_648  # 576 x 1024 x 2
    assert frame.features_bytes(INT8) == 592_128  # 576 x (1024 + 4)
    assert frame.tokens_bytes(HALF) == 8_192  # 1 x 4096 x 2


def test_llama_31_8b() -> None:
    kv = KVShape.of(config(8).text_config)
    assert kv.token_bytes(HALF) == 131_072  # 2 x 32 layers x 8 heads x 128 channels x 2 bytes
    assert kv.token_bytes(HALF, 8) == 67_584  # 2 x 32 x 8 x 132
    assert kv.token_bytes(HALF, 4) == 36_864  # 2 x 32 x 8 x 72
    frame = FrameShape.of(config(8), tokens=1)
    assert frame.kv_bytes(HALF) == 9_453_568  # 577 x 2 x 4 x 8 x 128 x 2
    assert frame.kv_bytes(INT8) == 4_874_496  # 577 x 2 x 4 x 8 x 132
    assert frame.features_bytes(HALF) == 1_179_648


def test_high_resolution_and_the_papers_order() -> None:
    high = FrameShape.of(config(32), tokens=4, views=5)
    assert high.features_bytes(HALF) == 5 * 1_179_648
    assert high.kv_bytes(HALF) == (5 * 576 + 4) * 65_536
    order = LlavaMiniConfig(text_config=config(32).text_config, num_fusion_layers=4, fuse_compressed_tokens=False)
    assert FrameShape.of(order, tokens=1).kv_bytes(HALF) == 576 * 65_536


def test_qwen2_has_no_head_dim_of_its_own(make_text_config: Factory) -> None:
    assert KVShape.of(make_text_config("qwen2")) == KVShape(layers=3, heads=2, head_dim=12)
    assert KVShape.of(make_text_config("llama"), layers=2) == KVShape(layers=2, heads=2, head_dim=12)


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_a_cache_takes_what_is_planned(make_model: Factory, bits: int | None) -> None:
    """Frozen bytes are those of `token_bytes` exactly, and the memory taken stays below `cache_bytes`."""
    model = make_model()
    cache = SessionCache(model.config, bits)
    with torch.no_grad():
        model.language_model(inputs_embeds=torch.randn(1, 150, 48), past_key_values=cache)
    cache.freeze()
    kv = KVShape.of(model.config.text_config)
    assert cache.used_bytes == 150 * kv.token_bytes(torch.float32, bits)
    assert cache.held_bytes <= kv.cache_bytes(150, torch.float32, bits)


def test_ten_thousand_frames_of_a_7b_model() -> None:
    """5.2 GB of keys and values, an eighth of room, and a layer's keys while they are copied."""
    kv = KVShape.of(config(32).text_config)
    assert kv.cache_bytes(10_000, HALF) == 11_264 * 524_288 + 10_000 * 8_192  # 10,000 + 1,250 is 175.8 blocks of 64
    assert kv.cache_bytes(10_000, HALF, 8) == 11_264 * 270_336 + 10_000 * (16_384 + 8_192)
    assert kv.cache_bytes(10_000, torch.bfloat16, 8) == 11_264 * 270_336 + 10_000 * (16_384 + 16_384)


def test_the_largest_number_that_fits() -> None:
    def need(frames: int) -> int:
        return 50 + 7 * frames

    for budget in (50, 57, 1_000, 123_456):
        largest = largest_frames(need, budget)
        assert largest == (budget - 50) // 7
    assert largest_frames(need, 10) == 0
    check_frames(142, need, budget=1_050, where="GPU memory")


def test_frames_that_do_not_fit_are_one_line() -> None:
    mebibyte = 2**20
    with pytest.raises(
        UserError,
        match=r"^10000 frames need 9\.77 GiB of GPU memory, 2\.00 GiB are free: at most 2048 frames fit \(a lower fps",
    ):
        check_frames(10_000, lambda frames: frames * mebibyte, budget=2**31, where="GPU memory")
