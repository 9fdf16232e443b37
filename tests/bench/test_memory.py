"""Plans at real sizes add up to what is written out by hand, and a point is a session in a process of its own."""

import pytest
import torch

from llava_mini.bench import memory
from llava_mini.bench.memory import (
    CARD,
    FRAMES,
    LLAVA,
    OURS,
    OURS_KV,
    POINTS,
    Point,
    VisualState,
    all_session_plans,
    session_peak,
    visual_states,
)
from llava_mini.bench.processes import fresh
from llava_mini.bench.subjects import card_bytes
from llava_mini.inference.memory import KVShape
from llava_mini.inference.session_plan import SessionPlan

VICUNA, LLAMA = "LLaVA-Mini, Vicuna-7B", "LLaVA-Mini, Llama-3.1-8B"
TOKEN = 2 * 8 * 128 * 4  # keys and values x layers x width x bytes, of the small model
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
    assert all(plan.fits == (plan.total_bytes <= card_bytes(CARD)) for plan in plans.values())
    assert all(plan.fits == (plan.largest >= FRAMES) for plan in plans.values())
    assert all(plan.fits for plan in plans.values())
    kv = KVShape(layers=32, heads=32, head_dim=128)
    assert plans[VICUNA, "fp16", 8].cache_bytes == kv.cache_bytes(FRAMES + 512, torch.float16, 8)
    assert plans[VICUNA, "fp16", 8].store_bytes == (11_796_480_000, 5_921_280_000)  # 10,000 x 576 x 2048 and x 1028
    for model in (VICUNA, LLAMA):
        for weights in ("fp16", "NF4"):
            of_bits = [plans[model, weights, bits] for bits in (None, 8, 4)]
            assert sorted(of_bits, key=lambda plan: plan.largest or 0) == of_bits


def test_the_report_names_every_row_and_point(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [Point(way, frames, frames << 20, frames << 10) for way in POINTS for frames in (1, 4)]
    monkeypatch.setattr(memory, "measure", lambda: points)
    [found] = memory.study()
    assert "| LLaVA-Mini, Vicuna-7B, standard | 576 | 1 | 288.00 | 0.50 |" in found.text
    assert sum("| yes |" in line or "| no |" in line for line in found.text.splitlines()) == 12
    assert "| LLaVA-v1.5, all patches | 4 | 4.0 | 0.0 |" in found.text
    assert {name: len(rows) for name, rows in found.figures.items()} == {
        "visual_state": 4,
        "sessions": 12,
        "measured": 6,
    }
    assert found.metrics["peak_bytes"]["LLaVA-Mini_features_kept_4_frames"] == 4 << 20
    assert found.draw is not None
    assert [line.get_xydata().tolist() for line in found.draw().axes[0].lines] == [[[1, 1], [4, 4]]] * 3


@pytest.mark.parametrize(("way", "tokens"), [(LLAVA, 576), (OURS, 1), (OURS_KV, 1)])
def test_a_frame_costs_the_language_model_its_tokens(way: str, tokens: int) -> None:
    one, two = session_peak(way, 1), session_peak(way, 2)
    assert (two.way, two.frames) == (way, 2)
    assert two.cache_bytes - one.cache_bytes == tokens * TOKEN


def test_the_peak_of_a_process_of_its_own() -> None:
    """Four frames of all patches: their keys and values at the least, and not a model or a library besides."""
    found = fresh(session_peak, LLAVA, 4)
    assert 4 * 576 * TOKEN < found.peak_bytes < 20 * 4 * 576 * TOKEN
