"""Ratios are taken within a round, and each requirement can be missed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llava_mini.bench import data_path
from llava_mini.bench.data_path import LLAVA, OWN, OWN_SMALL, WDS, Findings, targets
from llava_mini.bench.large_set import Opening
from llava_mini.bench.timing import Spread
from llava_mini.bench.trials import Build, Cost, Memory


def test_a_ratio_compares_trials_of_the_same_round(findings: Findings) -> None:
    assert findings.ratio(LLAVA, OWN) == Spread.of([9 / 2.8, 18 / 5.6])


def test_memory_is_what_comes_on_top(findings: Findings) -> None:
    assert findings.loading(OWN) == pytest.approx(32.8)


def test_all_requirements_are_listed_and_met(findings: Findings) -> None:
    found = targets(findings)
    assert [target.met for target in found] == [True] * 9
    assert [target.limit for target in found[:4]] == [3, 6, 1, 1]
    assert found[0].shown == "3.21 (3.21 to 3.21)"
    assert found[-1].shown == "458 (417 to 500)"


@pytest.mark.parametrize(
    ("number", "change"),
    [
        (0, lambda f: replace(f, costs={**f.costs, LLAVA: [Cost(8.3, 9), Cost(16.6, 9)]})),
        (1, lambda f: replace(f, costs={**f.costs, OWN_SMALL: [Cost(1.6, 2), Cost(3.2, 4)]})),
        (3, lambda f: replace(f, costs={**f.costs, WDS: [Cost(2.7, 2), Cost(5.4, 2)]})),
        (4, lambda f: replace(f, memories={**f.memories, OWN: Memory(300, 420)})),
        (6, lambda f: replace(f, openings=[Opening(0.2, 1), Opening(1.1, 1)])),
        (7, lambda f: replace(f, openings=[Opening(0.2, 51)])),
        (8, lambda f: replace(f, builds=[Build(2.6, 3, 1)])),
    ],
)
def test_each_requirement_can_be_missed(findings: Findings, number: int, change) -> None:
    assert not targets(change(findings))[number].met


def test_the_report_shows_every_loader_and_where_the_build_spends_its_time(
    findings: Findings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(work: Path, samples: int, rounds: int) -> Findings:
        assert work.is_dir() and not list(work.iterdir())
        return replace(findings, samples=samples * rounds)

    monkeypatch.setattr(data_path, "run", run)
    [report] = data_path.study(samples=7, rounds=2)
    assert "| LLaVA-style, originals | 13.50 (9.00 to 18.00) | 18.00 (9.00 to 27.00) | 39 |" in report.text
    assert "1.10 (1.00 to 1.20) of that, 50 %" in report.text
    assert "2.93 KiB a record, so 8.38 GiB for 3,000,000 records" in report.text
    figures = json.loads(json.dumps(report.figures))
    assert [target["met"] for target in figures["targets"]] == [True] * 9 and figures["findings"]["samples"] == 14
    assert figures["findings"]["costs"][OWN][0] == {"cpu": 2.8, "wall": 2.8}
    assert report.draw is not None
    time, memory = report.draw().axes
    assert [each.get_text() for each in time.texts] == ["13.50", "12.75", "6.75", "5.25", "4.80", "4.20", "2.10"]
    assert [each.get_text() for each in memory.texts] == ["39", "38", "34", "110", "33", "33", "31"]
