"""FLOPs at real sizes: the paper's totals, the savings that are claimed, and parts that add up."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from llava_mini.bench import flops
from llava_mini.bench.flop_count import Work, count
from llava_mini.bench.flops import ABLATIONS, BASE, MINI, PAPER, TERA, Row, find, row, rows
from llava_mini.errors import UserError
from llava_mini.models.inference_optimizations import RELEASE, InferenceOptimizations

EXACT, LATER = {"order": "exact"}, {"order": "exact", "cached": True}


@cache
def counted(model: str, **which: Any) -> Row:
    return row(model, 40, **which)


@pytest.fixture
def found() -> list[Row]:
    """What the picture shows, and the paper's totals."""
    shown = [
        counted(model, resolution=resolution, frames=frames, **which)
        for resolution, frames in (("standard", 1), ("hd", 1), ("standard", 16))
        for model, which in ((BASE, {}), (MINI, {}), (MINI, EXACT), (MINI, LATER))
    ]
    return shown + [counted(model, resolution="standard", frames=1) for model in ABLATIONS]


@pytest.mark.parametrize(("model", "resolution"), PAPER)
def test_the_papers_totals(model: str, resolution: str) -> None:
    total = counted(model, resolution=resolution, frames=1)["flops"]
    assert total / TERA == pytest.approx(PAPER[model, resolution], rel=0.02)


def test_with_attention(found: list[Row]) -> None:
    """REFERENCE section 4: 8.74 and 1.97, of which CLIP 0.38, pre-fusion 1.02 and the language model 0.54."""
    assert find(found, BASE)["flops_with_attention"] / TERA == pytest.approx(8.74, abs=0.01)
    mini = find(found, MINI)
    assert mini["flops_with_attention"] / TERA == pytest.approx(1.97, abs=0.01)
    parts = mini["parts_with_attention"]
    expected = {"vision_tower": 0.38, "prefusion": 1.02, "language_model": 0.54}
    assert {part: round(parts[part] / TERA, 2) for part in expected} == expected


@pytest.mark.parametrize("which", ["flops", "flops_with_attention"])
def test_the_exact_savings(found: list[Row], which: str) -> None:
    base = find(found, BASE)[which]
    assert 1 - find(found, MINI)[which] / base == pytest.approx(0.77, abs=0.01)  # the paper's
    assert 1 - find(found, MINI, **EXACT)[which] / base >= 0.795
    for frames in (1, 16):
        release, exact, later = (find(found, MINI, frames=frames, **order)[which] for order in ({}, EXACT, LATER))
        assert later < exact / 2.5 and exact < 0.9 * release


def test_parts_add_up(found: list[Row]) -> None:
    for each in found:
        assert sum(each["parts"].values()) == each["flops"]
        assert sum(each["parts_with_attention"].values()) == each["flops_with_attention"]
        assert each["flops"] < each["flops_with_attention"]
        if each["cached"]:
            assert not any(each["parts"][part] for part in ("vision_tower", "compressor", "projector"))
        elif MINI in each["model"]:
            assert each["parts"]["compressor"] > 0 and each["parts"]["projector"] > 0


def test_parts_of_llava_by_hand() -> None:
    """Vicuna-7B over 616 tokens, its head over all of them; the projector over 576 patches."""
    parts = counted(BASE, resolution="standard", frames=1)["parts"]
    layer = 4 * 4096**2 + 3 * 4096 * 11008
    assert parts["language_model"] == pytest.approx(2 * 616 * (32 * layer + 4096 * 32000), rel=1e-4)
    assert parts["projector"] == 2 * 576 * (1024 * 4096 + 4096**2)
    exact = counted(BASE, **EXACT)["parts"]
    assert parts["language_model"] - exact["language_model"] == pytest.approx(2 * 615 * 4096 * 32000, rel=1e-3)
    assert exact["vision_tower"] < parts["vision_tower"]


def test_later_question_by_hand(make_model: Callable) -> None:
    """Of two frames: pre-fusion's layers for the text of each, the language model for the text alone."""
    with torch.device("meta"):
        model = make_model().eval()
    text = model.config.text_config
    keys = text.hidden_size // text.num_attention_heads * text.num_key_value_heads
    layer = 2 * text.hidden_size**2 + 2 * text.hidden_size * keys + 3 * text.hidden_size * text.intermediate_size
    counted = count(model, Work(frames=2, text_tokens=7, cached=True), InferenceOptimizations())
    assert counted.weights["prefusion"] == pytest.approx(2 * 2 * 7 * 2 * layer, rel=0.02)
    head = text.hidden_size * text.vocab_size
    assert counted.weights["language_model"] == pytest.approx(2 * (7 * 3 * layer + head), rel=0.02)
    with pytest.raises(ValueError, match="follow-up question"):
        count(model, Work(cached=True), RELEASE)


def test_the_report(found: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flops, "rows", lambda text_tokens: found)
    [report] = flops.study(text_tokens=40)
    assert "| llava-mini-7b | hd | 7.19 | 7.3" in report.text
    assert report.text.count("\n| llava") == len(found) + len(PAPER)
    assert report.figures == {"text_tokens": 40, "rows": found} and len(report.metrics) == len(found)
    assert report.metrics["llava-v1.5-7b.standard.1.release"] == pytest.approx(8.55e12, rel=0.02)
    assert report.draw is not None
    shown = [[text.get_text() for text in axes.texts] for axes in report.draw().axes]
    assert [totals[:2] for totals in shown] == [["8.55", "1.95"], ["40.62", "7.31"], ["128.81", "23.26"]]


def test_no_text_is_refused() -> None:
    with pytest.raises(UserError, match="text_tokens=0: allowed are 1 and above"):
        rows(text_tokens=0)
