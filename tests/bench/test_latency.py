"""The study of latency in a tiny shape: everything is measured, and ratios are those of the timings."""

import json
from collections.abc import Callable

import pytest

from llava_mini.bench import latency
from llava_mini.bench.latency import (
    FURTHER,
    IMAGE,
    LATER_IMAGE,
    LATER_VIDEO,
    REQUIREMENTS,
    SHARED_IMAGE,
    SHARED_VIDEO,
    UNPACKED,
    VIDEO,
    Findings,
    Setting,
    run,
    text,
)
from llava_mini.bench.subjects import OURS, RELEASED, TRANSFORMERS, UNCOMPRESSED, WAYS
from llava_mini.bench.timing import Spread, Timing
from llava_mini.models import LlavaMiniConfig


@pytest.fixture(scope="module")
def config(make_config: Callable[..., LlavaMiniConfig]) -> LlavaMiniConfig:
    return make_config(image_token_id=98)


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


def test_ratios_and_shares() -> None:
    def timing(way: str, task: str, seconds: float, flops: int = 100) -> Timing:
        return Timing(way, task, 1, 1, flops, Spread.of([seconds, seconds, 9 * seconds]), Spread.of([3 * seconds]))

    timings = [timing(TRANSFORMERS, IMAGE, 6.0), timing(UNPACKED[TRANSFORMERS], IMAGE, 7.6), timing(OURS, IMAGE, 1.9)]
    timings += [timing(UNCOMPRESSED, IMAGE, 5.0), timing(RELEASED, VIDEO, 6.0), timing(OURS, VIDEO, 5.0)]
    timings += [timing(OURS, LATER_IMAGE, 0.5), timing(OURS, LATER_VIDEO, 0.5)]
    timings += [timing(OURS, SHARED_IMAGE, 0.25), timing(OURS, SHARED_VIDEO, 1.0)]
    found = Findings(3, Setting(), timing("matmul", "2x2", 1.0, flops=400), timings)
    assert [round(found.ratio(each), 2) for each in REQUIREMENTS] == [3.16, 4.0, 2.63, 1.2, 3.8, 7.6, 10.0, 5.0]
    assert [found.met(each) for each in REQUIREMENTS] == [True, True, False, True, True, True, True, False]
    assert found.find(OURS, LATER_IMAGE).share(found.peak) == 0.5
    assert "| image: ours without compression over ours | 3 | 2.63 | 2.63 | no |" in text(found)


def test_the_report(found: Findings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "run", lambda config, setting, rounds: found)
    [report] = latency.study(rounds=2)
    written = json.loads(json.dumps(report.figures))
    assert len(written["bars"]) == len(REQUIREMENTS) and len(written["timings"]) == len(found.timings)
    assert len(report.metrics) == len(REQUIREMENTS) + len(found.timings)
    assert report.text.count("| LLaVA-Mini, ours | 2 |") == 1
    assert report.draw is not None and [len(axes.texts) for axes in report.draw().axes] == [7, 3, 6]
