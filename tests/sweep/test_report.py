"""`compare` as a whole: the files it leaves and the lines it prints."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from llava_mini.errors import UserError
from llava_mini.sweep.analysis import analyze
from llava_mini.sweep.findings import headline
from llava_mini.sweep.report import compare

SweepFolder = Callable[..., Path]

COLUMNS = {
    "run", "status", "compressor", "C", "tokens", "n_fusion", "seed", "reference", "compressor.C", "fusion.num_layers",
    "accuracy", "ci_low", "ci_high", "val_accuracy", "prefill_flops", "seconds", "cpu_seconds", "peak_memory_bytes",
    "mlflow_run_id", "error", "split", "converged", "gained_last_third", "gain_noise", "steps", "start",
}  # fmt: skip
BY_GROUP, BY_KIND = {"word_accuracy", "nll"}, {"accuracy_by_kind", "word_accuracy_by_kind", "nll_by_kind"}


def test_the_files_of_a_report(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder("compressor.C=1,2", "seed=0,1", failed={"query-C1-N4-s0": "ValueError: no"})
    lines: list[str] = []
    report = compare(folder, lines.append)
    assert report == folder / "report.html"
    assert lines[-1] == str(report)
    assert {path.name for path in folder.iterdir()} == {
        "sweep.json", "runs", "report.html", "results.csv", "results.json",
        "accuracy_vs_tokens.png", "accuracy_vs_flops.png", "accuracy_by_kind.png",
    }  # fmt: skip

    rows = json.loads((folder / "results.json").read_text())
    assert len(rows) == 6
    assert all(set(row) == COLUMNS | BY_GROUP | BY_KIND for row in rows)
    assert [row["status"] for row in rows].count("finished") == 5
    for key in ("accuracy", "converged", *BY_GROUP, *BY_KIND):
        assert all((row[key] is None) == (row["status"] != "finished") for row in rows)
    with (folder / "results.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["run"] for row in table] == [row["run"] for row in rows]
    kinds = ["digits", "colors", "objects", "color", "shape", "digit", "count", "exist", "where"]
    flat = {f"{key}.{group}" for key in BY_GROUP for group in ("dense", "one_word")}
    assert set(table[0]) == COLUMNS | flat | {f"{key}.{kind}" for key in BY_KIND for kind in kinds}
    for row, cells in zip(rows, table, strict=True):
        if row["status"] == "failed":
            assert cells["word_accuracy.dense"] == cells["nll_by_kind.color"] == cells["converged"] == ""
        else:
            assert float(cells["accuracy"]) == row["accuracy"]
            assert float(cells["word_accuracy.one_word"]) == row["word_accuracy"]["one_word"]
            assert float(cells["nll_by_kind.color"]) == row["nll_by_kind"]["color"]


def test_the_printed_tables(sweep_folder: SweepFolder) -> None:
    lines: list[str] = []
    folder = sweep_folder(
        "compressor.C=1,2", "seed=0,1,2", failed={"query-C1-N4-s0": "ValueError: no"},
        accuracy=lambda run: {None: 0.9, 1: 0.5, 2: 0.7}[run.C],
        training=lambda run: {"converged": False, "gained_last_third": 0.031} if run.C == 2 else {},
    )  # fmt: skip
    compare(folder, lines.append)
    for start, title in ((0, "Dense answers"), (6, "One-word answers")):
        assert lines[start] == f"{title}: words right, % of test"
        assert lines[start + 1].split()[:4] == ["configuration", "tokens", "seeds", "right"]
        none, one, two = lines[start + 2 : start + 5]
        assert none.startswith("none N=0 ")
        assert "reference" in none
        assert re.search(r"2/3 +\d\d\.\d +\(.\d\d\.\d\) ", one), "two common seeds: values without intervals"
        assert re.search(r"3/3 .* .\d\d\.\d\*  .\d\d\.\d to .\d\d?\.\d ", two)
        assert two.endswith("still improving: +3.1 points in the last third")
    assert any("correction for the 1 comparison of a table" in line for line in lines)
    assert "(...): fewer than 3 common seeds, which show no difference." in lines
    assert any(line.startswith("failed: query-C1-N4-s0-") and line.endswith(": ValueError: no") for line in lines)
    assert all(sentence in lines for sentence in headline(analyze(folder)))


def test_one_group_is_one_table(sweep_folder: SweepFolder) -> None:
    lines: list[str] = []
    compare(sweep_folder("seed=0,1,2", accuracy={"one_word": 0.7}), lines.append)
    assert [line for line in lines if ": words right" in line] == ["Word accuracy: words right, % of test"]


def test_comparing_again_gives_the_same(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder("compressor.C=1,2", "seed=0,1", accuracy={"dense": 0.7})
    names = ("report.html", "results.json", "results.csv")
    compare(folder, lambda _: None)
    first = [(folder / name).read_bytes() for name in names]
    compare(folder, lambda _: None)
    assert [(folder / name).read_bytes() for name in names] == first


def test_nothing_finished(sweep_folder: SweepFolder) -> None:
    lines: list[str] = []
    folder = sweep_folder(interrupted=["none-N0-s0", "query-C1-N4-s0"])
    compare(folder, lines.append)
    assert lines[-1] == str(folder / "report.html")
    assert not list(folder.glob("*.png"))
    assert [row["status"] for row in json.loads((folder / "results.json").read_text())] == ["interrupted"] * 2


def test_no_sweep_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not the folder of a sweep"):
        compare(tmp_path)


def test_a_real_sweep_ends_in_a_report(
    sweep: Callable[..., tuple[int, list[str]]], tmp_path: Path, standin: ModuleType
) -> None:
    status, _ = sweep("compressor=query,zero", "seed=0,1", "standin.act=finish,fail")
    assert status == 1
    compare(tmp_path / "sweep", lambda _: None)
    rows = json.loads((tmp_path / "sweep" / "results.json").read_text())
    assert sorted(row["status"] for row in rows) == ["failed"] * 6 + ["finished"] * 6
    assert all("<fails> & says so" in row["error"] for row in rows if row["status"] == "failed")
    html = (tmp_path / "sweep" / "report.html").read_text()
    assert "&lt;fails&gt; &amp; says so" in html
