"""The report says which requirements are met, and nothing about where it was made."""

import json
import platform
from dataclasses import replace
from pathlib import Path

import pytest

from llava_mini.bench.data_path import OWN, OWN_SMALL, USUAL, WDS, Findings
from llava_mini.bench.large_set import Opening
from llava_mini.bench.record import circumstances
from llava_mini.bench.report import LIBRARIES, table, targets, write_report
from llava_mini.bench.trials import Build, Cost, Memory


def test_all_requirements_are_listed_and_met(findings: Findings) -> None:
    found = targets(findings)
    assert [target.met for target in found] == [True] * 9
    assert [target.limit for target in found[:4]] == [3, 6, 1, 1]
    assert found[0].shown == "3.21 (3.21 to 3.21)"
    assert found[-1].shown == "458 (417 to 500)"


@pytest.mark.parametrize(
    ("number", "change"),
    [
        (0, lambda f: replace(f, costs={**f.costs, USUAL: [Cost(8.3, 9), Cost(16.6, 9)]})),
        (1, lambda f: replace(f, costs={**f.costs, OWN_SMALL: [Cost(1.6, 2), Cost(3.2, 4)]})),
        (3, lambda f: replace(f, costs={**f.costs, WDS: [Cost(2.7, 2), Cost(5.4, 2)]})),
        (4, lambda f: replace(f, memories={**f.memories, OWN: Memory(300, 420)})),
        (6, lambda f: replace(f, openings=[Opening(0.2, 1), Opening(1.1, 1)])),
        (7, lambda f: replace(f, openings=[Opening(0.2, 51)])),
        (8, lambda f: replace(f, builds=[Build(2.6, 3, 1)])),
    ],
)
def test_each_requirement_can_be_missed(findings: Findings, number: int, change) -> None:
    missed = targets(change(findings))[number]
    assert not missed.met


def test_the_files_name_neither_places_nor_the_machine(findings: Findings, tmp_path: Path) -> None:
    write_report(findings, tmp_path / "out", circumstances("c" * 40 + "+changes", LIBRARIES))
    texts = [(tmp_path / "out" / name).read_text() for name in ("table.md", "results.json")]
    for text in texts:
        assert str(tmp_path) not in text and platform.node() not in text
    content = json.loads(texts[1])
    assert content["about"]["torch"] and content["about"]["cores"] >= 1
    assert [target["met"] for target in content["targets"]] == [True] * 9
    assert content["findings"]["costs"][OWN][0] == {"cpu": 2.8, "wall": 2.8}


def test_the_table_shows_every_loader_and_where_the_build_spends_its_time(findings: Findings) -> None:
    text = table(findings, circumstances("c" * 40 + "+changes", LIBRARIES))
    assert "`cccccccccccc+changes`" in text
    assert "| usual, originals | 13.50 (9.00 to 18.00) | 18.00 (9.00 to 27.00) | 39 |" in text
    assert "1.10 (1.00 to 1.20) of that, 50 %" in text
    assert "3.0 KB a record, so 9.0 GB for 3,000,000 records" in text
