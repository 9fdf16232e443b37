"""The bench of latency in a tiny shape: every way answers, the same as its like, and what is found is told."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from llava_mini.bench.baselines import (
    OURS,
    RELEASED,
    TRANSFORMERS,
    UNCOMPRESSED,
    WAYS,
    FollowUp,
    Models,
    further_tokens,
)
from llava_mini.bench.flops import Work
from llava_mini.bench.latency import (
    BARS,
    FURTHER,
    IMAGE,
    LATER_IMAGE,
    LATER_VIDEO,
    SHARED_IMAGE,
    SHARED_VIDEO,
    UNPACKED,
    VIDEO,
    Findings,
    Setting,
    mid_size,
    run,
)
from llava_mini.bench.latency_report import draw, figures, met, metrics, table
from llava_mini.bench.stopwatch import Spread, Timing, Trial, measure
from llava_mini.models import LlavaMiniConfig

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config(make_config: Callable[..., LlavaMiniConfig]) -> LlavaMiniConfig:
    return make_config(image_token_id=98)


@pytest.fixture(scope="module")
def models(config: LlavaMiniConfig) -> Models:
    torch.manual_seed(0)
    return Models(config, CPU, torch.float32, prepacked=True)


@pytest.fixture(scope="module")
def found(config: LlavaMiniConfig) -> Findings:
    return run(config, Setting(frames=3, text_tokens=5, shared_tokens=3, batches=(2,)), rounds=2)


def test_everything_is_measured(found: Findings) -> None:
    asked = {(each.way, each.task, each.batch) for each in found.timings}
    assert asked == {
        *((way, IMAGE, batch) for way in WAYS for batch in (1, 2)),
        *((way, VIDEO, 1) for way in (RELEASED, OURS)),
        *((OURS, task, 1) for task in (LATER_IMAGE, LATER_VIDEO, SHARED_IMAGE, SHARED_VIDEO)),
        *((way, FURTHER, 1) for way in (*WAYS, *UNPACKED.values())),
        *((way, IMAGE, 1) for way in UNPACKED.values()),
        (UNPACKED[OURS], LATER_IMAGE, 1),
    }
    for each in (found.peak, *found.timings):
        assert 0 < each.wall.least <= each.wall.median <= each.wall.most
    assert found.find(OURS, IMAGE, 2).flops == 2 * found.find(OURS, IMAGE).flops
    assert found.find(TRANSFORMERS, IMAGE).flops > found.find(UNCOMPRESSED, IMAGE).flops


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
def test_a_shared_system_text_stands_before_the_frames(models: Models) -> None:
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


def test_rounds_are_interleaved_behind_one_to_warm_up() -> None:
    seen: list[str] = []
    trials = [Trial("a", "x", lambda: seen.append("a"), flops=10), Trial("b", "x", lambda: seen.append("b"), times=4)]
    first, second = measure(trials, rounds=2, device=CPU)
    assert seen == ["a", "b"] * 3
    assert (first.way, second.way) == ("a", "b")


def test_ratios_and_shares() -> None:
    def timing(way: str, task: str, seconds: float, flops: int = 100) -> Timing:
        return Timing(way, task, 1, 1, flops, Spread.of([seconds, seconds, 9 * seconds]), Spread.of([3 * seconds]))

    timings = [timing(TRANSFORMERS, IMAGE, 6.0), timing(UNPACKED[TRANSFORMERS], IMAGE, 7.6), timing(OURS, IMAGE, 1.9)]
    timings += [timing(UNCOMPRESSED, IMAGE, 5.0), timing(RELEASED, VIDEO, 6.0), timing(OURS, VIDEO, 5.0)]
    timings += [timing(OURS, LATER_IMAGE, 0.5), timing(OURS, LATER_VIDEO, 0.5)]
    timings += [timing(OURS, SHARED_IMAGE, 0.25), timing(OURS, SHARED_VIDEO, 1.0)]
    found = Findings(3, Setting(), timing("matmul", "2x2", 1.0, flops=400), timings)
    assert [round(found.ratio(bar), 2) for bar in BARS] == [3.16, 4.0, 2.63, 1.2, 3.8, 7.6, 10.0, 5.0]
    assert [met(found, bar) for bar in BARS] == [True, True, False, True, True, True, True, False]
    assert found.find(OURS, LATER_IMAGE).share(found.peak) == 0.5
    assert "| image: ours without compression over ours | 3 | 2.63 | 2.63 | no |" in table(found)


def test_the_report(found: Findings, tmp_path: Path) -> None:
    told = json.loads(json.dumps(figures(found)))
    assert len(told["bars"]) == len(BARS) and len(told["timings"]) == len(found.timings)
    assert len(metrics(found)) == len(BARS) + len(found.timings)
    assert table(found).count("| LLaVA-Mini, ours | 2 |") == 1
    draw(found, tmp_path / "latency.png")
    with Image.open(tmp_path / "latency.png") as image:
        assert image.size[0] > 1000
