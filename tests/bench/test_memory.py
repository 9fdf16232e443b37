"""The plans at real sizes: parts add up to what is written out by hand, and what is said to fit does."""

import pytest
import torch

from llava_mini.bench.memory import CARD, FRAMES, VisualState, all_session_plans, table, visual_states
from llava_mini.inference.memory import KVShape
from llava_mini.inference.session_plan import SessionPlan

VICUNA, LLAMA = "LLaVA-Mini, Vicuna-7B", "LLaVA-Mini, Llama-3.1-8B"
Plans = dict[tuple[str, str, int | None], SessionPlan]


@pytest.fixture(scope="module")
def plans() -> Plans:
    return {(plan.model, plan.weights, plan.bits): plan for plan in all_session_plans()}


def test_an_image() -> None:
    states = {(state.model, state.views): state for state in visual_states()}
    # A token: 2 x 32 layers x 32 (Llama 3.1: 8) heads x 128 channels x 2 bytes; 24 x 24 patches, HD five views.
    assert states[VICUNA, 1] == VisualState(VICUNA, 1, (576, 1), (576 * 524_288, 524_288))
    assert states[VICUNA, 5] == VisualState(VICUNA, 5, (2880, 1), (2880 * 524_288, 524_288))
    assert states[LLAMA, 1] == VisualState(LLAMA, 1, (576, 1), (576 * 131_072, 131_072))


def test_weights(plans: Plans) -> None:
    """Of 7B: Vicuna 6,738,415,616; four of its layers again; CLIP 303,507,456; projector and compressor."""
    layer = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    projector, compressor = 1024 * 4096 + 4096 + 4096**2 + 4096, 1024 + 4 * 1024**2 + 4 * 1024
    parameters = 6_738_415_616 + 4 * layer + 303_507_456 + projector
    full = plans[VICUNA, "fp16", None].weight_bytes
    assert full == pytest.approx(2 * (parameters + compressor), rel=1e-3)  # the compressor's norms and biases
    packed = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert full - plans[VICUNA, "NF4", None].weight_bytes == pytest.approx(packed * (2 - 4.127 / 8), abs=1)


def test_ten_thousand_frames_on_24_gb(plans: Plans) -> None:
    assert all(plan.fits == (plan.total_bytes <= CARD) for plan in plans.values())
    assert all(plan.fits == (plan.largest >= FRAMES) for plan in plans.values())
    assert all(plan.fits for plan in plans.values())
    kv = KVShape(layers=32, heads=32, head_dim=128)
    assert plans[VICUNA, "fp16", 8].cache_bytes == kv.cache_bytes(FRAMES + 512, torch.float16, 8)
    assert plans[VICUNA, "fp16", 8].store_bytes == (11_796_480_000, 5_921_280_000)  # 10,000 x 576 x 2048 and x 1028
    for model in (VICUNA, LLAMA):
        for weights in ("fp16", "NF4"):
            of_bits = [plans[model, weights, bits] for bits in (None, 8, 4)]
            assert sorted(of_bits, key=lambda plan: plan.largest or 0) == of_bits


def test_the_table_names_every_row(plans: Plans) -> None:
    shown = table(visual_states(), list(plans.values()))
    assert "| LLaVA-Mini, Vicuna-7B, standard | 576 | 1 | 301.99 | 0.52 |" in shown
    assert sum("| yes |" in line or "| no |" in line for line in shown.splitlines()) == 12
