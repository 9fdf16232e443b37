"""`llava-mini bench`: what is wanted is written, what cannot be is one line and exit status 2."""

import sys
from pathlib import Path

import pytest

from llava_mini.bench import data_path
from llava_mini.bench.data_path import OWN, OWN_SMALL, USUAL, USUAL_OUR_LABELS, USUAL_SMALL, WDS, WDS_SHUFFLED, Findings
from llava_mini.bench.large_set import Opening
from llava_mini.bench.trials import Build, Cost, Memory
from llava_mini.cli import main

NAMES = (USUAL, USUAL_OUR_LABELS, USUAL_SMALL, WDS_SHUFFLED, WDS, OWN, OWN_SMALL)


def test_a_bench_writes_table_figures_and_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[int, int]] = []

    def run(work: Path, samples: int, rounds: int) -> Findings:
        assert work.is_dir() and not list(work.iterdir())
        asked.append((samples, rounds))
        costs = {name: [Cost(2.0, 2.0)] for name in NAMES}
        memories = {name: Memory(1, 2) for name in NAMES}
        pixels = {OWN: (1.0, 1.0), OWN_SMALL: (1.0, 1.0)}
        return Findings(samples, costs, memories, 1.0, [Opening(1, 1)], [Build(1, 1, 1)], [1.0], pixels)

    monkeypatch.setattr(data_path, "run", run)
    out = tmp_path / "out"
    assert main(["bench", "data", "--samples", "7", "--rounds", "2", "--out", str(out)]) == 0
    assert asked == [(7, 2)]
    assert sorted(path.name for path in out.iterdir()) == ["data_path.png", "results.json", "table.md"]
    assert (out / "table.md").read_text() in capsys.readouterr().out


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in [name for name in sys.modules if name.startswith("llava_mini.bench")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "webdataset", None)
    assert main(["bench", "data"]) == 2
    assert "bench data needs webdataset: pip install" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["model"], ["data", "--samples", "0"], ["data", "--rounds", "many"]])
def test_impossible_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", *arguments])
    assert caught.value.code == 2
