"""`compare` as a whole: the files it leaves and the lines it prints."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from llava_mini.errors import UserError
from llava_mini.sweep.report import compare

SweepFolder = Callable[..., Path]

COLUMNS = {
    "run", "status", "compressor", "C", "tokens", "n_fusion", "seed", "reference", "compressor.C", "fusion.num_layers",
    "accuracy", "ci_low", "ci_high", "val_accuracy", "prefill_flops", "seconds", "cpu_seconds", "peak_memory_bytes",
    "mlflow_run_id", "error", "split",
}  # fmt: skip


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
    assert all(set(row) == COLUMNS for row in rows)
    assert [row["status"] for row in rows].count("finished") == 5
    assert all((row["accuracy"] is None) == (row["status"] != "finished") for row in rows)
    with (folder / "results.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["run"] for row in table] == [row["run"] for row in rows]
    assert float(table[0]["accuracy"]) == rows[0]["accuracy"]


def test_the_printed_table(sweep_folder: SweepFolder) -> None:
    lines: list[str] = []
    folder = sweep_folder("compressor.C=1,2", "seed=0,1", failed={"query-C1-N4-s0": "ValueError: no"})
    compare(folder, lines.append)
    assert lines[0].split()[:4] == ["configuration", "tokens", "seeds", "accuracy"]
    assert {line[:14].strip() for line in lines[1:4]} == {"none N=0", "query C=1, N=4", "query C=2, N=4"}
    accuracies = [float(line[14:].split()[2]) for line in lines[1:4]]
    assert accuracies == sorted(accuracies, reverse=True)
    assert next(line for line in lines if line.startswith("query C=1")).split()[4] == "1/2"
    assert any(line.startswith("failed: query-C1-N4-s0-") and line.endswith(": ValueError: no") for line in lines)


def test_comparing_again_gives_the_same(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder("compressor.C=1,2", "seed=0,1")
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
