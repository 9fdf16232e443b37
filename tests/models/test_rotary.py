"""Scaled frequencies are those of the published formulas, here written out; what cannot be scaled is refused."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.refusals import refuses

from llava_mini.models.language_model import build_language_model
from llava_mini.models.rotary import scale_rotary, scaled_parameters

Factory = Callable[..., Any]
WIDTH, BASE, TRAINED, WANTED = 12, 10_000.0, 256, 1024  # of make_text_config; a factor of 4
FACTOR = WANTED / TRAINED
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": BASE, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip


def frequencies(base: float = BASE) -> list[float]:
    """As trained: base^(-2i/d)."""
    return [base ** (-2 * i / WIDTH) for i in range(WIDTH // 2)]


def yarn(factor: float, original: int) -> list[float]:
    """YaRN's frequencies.

    Those that turn fewer than once in the trained length are divided by the factor, those that turn more than 32 times
    stay, and between their places in the list (rounded outwards) there is a straight ramp.
    """

    def place(turns: int) -> float:
        return WIDTH * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(BASE))

    low, high = max(0, math.floor(place(32))), min(WIDTH - 1, math.ceil(place(1)))
    ramp = [min(1, max(0, (i - low) / (high - low))) for i in range(WIDTH // 2)]
    return [f / factor * r + f * (1 - r) for f, r in zip(frequencies(), ramp, strict=True)]


def scaled(text_config: Any, kind: str) -> Any:
    """The decoder's rotary embedding for WANTED tokens."""
    language_model = build_language_model(text_config)
    scale_rotary(language_model, {"kind": kind, "tokens": WANTED})
    return language_model.get_decoder().rotary_emb


def agree(found: torch.Tensor, expected: list[float]) -> bool:
    """Up to float32's rounding in powers and logarithms."""
    return torch.allclose(found, torch.tensor(expected), rtol=1e-5, atol=0)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_formulas(make_text_config: Factory, family: str) -> None:
    text_config = make_text_config(family)
    linear = scaled(text_config, "linear")
    assert agree(linear.inv_freq, [f / FACTOR for f in frequencies()])
    dynamic = scaled(text_config, "dynamic")
    # b' = b (s L / L0 - (s - 1))^(d / (d - 2)) with s = 1, at L = WANTED: the lowest frequency is divided by the factor
    assert agree(dynamic.inv_freq, frequencies(BASE * FACTOR ** (WIDTH / (WIDTH - 2))))
    assert dynamic.inv_freq[-1].item() == pytest.approx(frequencies()[-1] / FACTOR, rel=1e-5)
    both = scaled(text_config, "yarn")
    assert agree(both.inv_freq, yarn(FACTOR, TRAINED))
    assert both.attention_scaling == pytest.approx(0.1 * math.log(FACTOR) + 1)
    assert (linear.attention_scaling, dynamic.attention_scaling) == (1, 1)


def test_over_a_scaling_that_was_trained(make_text_config: Factory) -> None:
    """Positions interpolated by 2 are interpolated by 8; YaRN takes Llama 3.1's place from the same original length."""
    linear = make_text_config(rope_parameters={"rope_type": "linear", "rope_theta": BASE, "factor": 2.0})
    assert agree(scaled(linear, "linear").inv_freq, [f / 8 for f in frequencies()])
    llama3 = make_text_config(rope_parameters=LLAMA3)
    assert agree(scaled(llama3, "yarn").inv_freq, yarn(WANTED / 32, 32))
    assert scaled_parameters(llama3, "yarn", WANTED)["factor"] == 32


def test_as_it_was_trained(make_text_config: Factory) -> None:
    language_model = build_language_model(make_text_config())
    before = language_model.get_decoder().rotary_emb.inv_freq
    scale_rotary(language_model, {"kind": "linear", "tokens": WANTED})
    scale_rotary(language_model, None)
    assert torch.equal(language_model.get_decoder().rotary_emb.inv_freq, before)
    assert language_model.config.rope_parameters["rope_type"] == "default"


@pytest.mark.parametrize(
    ("scaling", "key", "allowed"),
    [
        ("yarn", "", "none and {'kind': ..., 'tokens': ...}"),
        ({"kind": "yarn"}, "", "none and {'kind': ..., 'tokens': ...}"),
        ({"kind": "longer", "tokens": 1024}, ".kind", "linear, dynamic, yarn"),
        *(
            ({"kind": "yarn", "tokens": tokens}, ".tokens", "whole numbers above the model's own 256")
            for tokens in (256, -1, 1e6, True)
        ),
    ],
)
def test_nonsense_is_refused(make_config: Factory, scaling: Any, key: str, allowed: str) -> None:
    with refuses(f"context_scaling{key}", scaling[key[1:]] if key else scaling, allowed):
        make_config(context_scaling=scaling)


@pytest.mark.parametrize("kind", ["linear", "dynamic"])
def test_what_cannot_lie_over_llama_3_1(make_config: Factory, make_text_config: Factory, kind: str) -> None:
    with refuses("context_scaling.kind", kind, "yarn"):
        make_config(
            text_config=make_text_config(rope_parameters=LLAMA3), context_scaling={"kind": kind, "tokens": WANTED}
        )
