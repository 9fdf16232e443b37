"""A sweep's MLflow run after its report: files, headline, figures with right values, and a view with charts."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from llava_mini.sweep.analysis import analyze
from llava_mini.sweep.findings import headline
from llava_mini.sweep.grid import expand
from llava_mini.sweep.report import compare
from llava_mini.sweep.tracked import summary, track_report, view
from llava_mini.tracking.mlflow import MLflow
from llava_mini.tracking.spool import DataInput, Origin, Spool
from llava_mini.tracking.tracker import Tracker, flush_spools


def result(dense: float | None, accuracy: float = 0.5, tokens: int = 1, **changes: Any) -> dict[str, Any]:
    """Figures of a run whose validation is worse by 0.1."""
    groups = {"one_word": 0.75} if dense is None else {"dense": dense, "one_word": 0.75}
    return {
        "accuracy": {"val": accuracy - 0.1, "test": accuracy},
        "word_accuracy": {"val": dict.fromkeys(groups, 0.1), "test": groups},
        "nll": {"val": {}, "test": {"one_word": 0.25}},
        "tokens": tokens, "prefill_flops": 1000 * tokens, "seconds": 60.0, "peak_memory_bytes": 2**20, **changes,
    }  # fmt: skip


@pytest.fixture
def finished(standin: ModuleType) -> Callable[..., list[tuple[Any, dict[str, Any]]]]:
    """finished({label: result}, "key=value,value", ...): those of a sweep's runs that have a result."""

    def make(results: dict[str, dict[str, Any]], *arguments: str) -> list[tuple[Any, dict[str, Any]]]:
        runs = {run.label: run for run in expand(arguments, standin.resolve)}
        return [(runs[label], given) for label, given in results.items()]

    return make


def test_what_some_runs_were_not_asked_is_left_out(finished) -> None:
    results = {
        "none-N0-s0": result(0.9, tokens=64),
        "none-N0-s1": result(None, tokens=64),
        "query-C1-N4-s0": result(0.75),
        "query-C1-N4-s1": result(None),
        "query-C2-N4-s0": result(0.85, tokens=4),
        "query-C4-N4-s0": result(None, accuracy=0.99, tokens=16),
    }
    metrics = summary(finished(results, "compressor.C=1,2,4", "seed=0,1"))
    assert metrics["best.tokens"] == 4, "an accuracy of 0.99 is another figure than words right on dense answers"
    assert metrics["difference.word_accuracy.one_word.query-C1-N4"] == 0.0
    assert "difference.word_accuracy.dense.query-C1-N4" not in metrics


def test_the_best_and_all_others_are_compared_with_their_reference(finished) -> None:
    results = {
        "none-N0-s0": result(0.9, tokens=64),
        "none-N0-s1": result(0.8, tokens=64),
        "query-C1-N4-s0": result(0.75, 0.6),
        "query-C1-N4-s1": result(0.75, 0.4),
        "query-C2-N4-s0": result(0.85, tokens=4),  # the other seed is not finished
    }
    metrics = summary(finished(results, "compressor.C=1,2", "seed=0,1"))
    assert metrics["best.word_accuracy.dense"] == 0.85
    assert metrics["best.tokens"] == 4
    assert metrics["reference.word_accuracy.dense"] == 0.9, "of the seed that both have"
    assert metrics["difference.word_accuracy.dense"] == pytest.approx(-0.05)
    assert metrics["difference.word_accuracy.dense.query-C1-N4"] == pytest.approx(0.75 - 0.85)
    assert metrics["difference.accuracy.query-C1-N4"] == pytest.approx(0.0)
    assert metrics["difference.word_accuracy.dense.query-C2-N4"] == pytest.approx(-0.05)
    assert metrics["reference.prefill_flops"] == 64000
    assert metrics["best.nll.one_word"] == 0.25
    assert not [key for key in metrics if "none" in key or "nll.dense" in key]


def test_each_setting_has_its_own_reference(finished) -> None:
    results = {
        "none-N0-max_steps=5-s0": result(0.5),
        "none-N0-max_steps=9-s0": result(0.9),
        "query-C1-N4-max_steps=5-s0": result(0.6),
        "query-C1-N4-max_steps=9-s0": result(0.7),
    }
    metrics = summary(finished(results, "trainer.max_steps=5,9"))
    assert metrics["difference.word_accuracy.dense.query-C1-N4-max_steps=5"] == pytest.approx(0.1)
    assert metrics["difference.word_accuracy.dense.query-C1-N4-max_steps=9"] == pytest.approx(-0.2)
    assert (metrics["best.word_accuracy.dense"], metrics["reference.word_accuracy.dense"]) == (0.7, 0.9)


def test_without_dense_answers_accuracy_decides(finished) -> None:
    results = {
        "none-N0-s0": result(None), "query-C1-N4-s0": result(None, 0.4), "query-C2-N4-s0": result(None, 0.3),
    }  # fmt: skip
    metrics = summary(finished(results, "compressor.C=1,2"))
    assert metrics["best.accuracy"] == 0.4
    assert not [key for key in metrics if "dense" in key]


def test_a_sweep_that_leaves_the_test_split_unread_is_summed_up_on_validation(finished) -> None:
    def tuned(accuracy: float) -> dict[str, Any]:
        words = {"val": {"dense": accuracy / 2}}
        return {**result(None), "accuracy": {"val": accuracy}, "word_accuracy": words, "nll": {"val": {}}}

    results = {"none-N0-s0": tuned(0.8), "query-C1-N4-s0": tuned(0.6)}
    metrics = summary(finished(results))
    assert (metrics["best.accuracy"], metrics["best.word_accuracy.dense"]) == (0.6, 0.3)
    shown = view("tuning", [given for _, given in finished(results)])
    assert ("tokens", "word_accuracy.val.dense") in shown.charts
    assert "accuracy.val" in shown.metrics


def test_without_a_pair_there_is_nothing_to_sum_up(finished) -> None:
    assert summary(finished({"query-C1-N4-s0": result(0.5)})) == {}
    assert summary([]) == {}


def test_charts_are_of_what_was_measured() -> None:
    assert view("mine").charts == []
    assert view("mine", [result(None)]).charts == [
        ("tokens", "word_accuracy.test.one_word"), ("tokens", "accuracy.test")
    ]  # fmt: skip
    assert view("mine", [result(None), result(0.5)]).charts == [
        ("tokens", "word_accuracy.test.dense"), ("prefill_flops", "word_accuracy.test.dense"),
        ("tokens", "word_accuracy.test.one_word"), ("tokens", "accuracy.test"),
    ]  # fmt: skip


def test_a_report_becomes_part_of_the_sweeps_run(sweep_folder: Callable[..., Path], new_tracker: str) -> None:
    uri = new_tracker
    folder = sweep_folder("compressor.C=1,2", interrupted=["query-C2-N4-s0"])
    read = DataInput("train", "ab" * 32, "data/world/train", 100, "training")
    for child in folder.glob("runs/*"):
        Spool(child).create(Origin(uri, "experiment", child.name))
        Spool(child).append("inputs", {"datasets": [vars(read)]})
        Spool(child).append("file", {"path": "result.json"})
    parent = Tracker(folder, uri=uri)
    parent.finish(wait=30)
    assert flush_spools(folder.glob("runs/*"), lanes=("reports",)) == 0
    assert [Spool(child).pending() for child in folder.glob("runs/*")] == [2, 2]
    compare(folder, say=lambda _: None)
    track_report(folder, MLflow())
    assert [Spool(each).pending() for each in (folder, *folder.glob("runs/*"))] == [0, 0, 0]
    client, run_id = MlflowClient(uri), Spool(folder).run_id()
    assert run_id is not None
    run = client.get_run(run_id)
    assert run.data.tags["mlflow.note.content"] == "\n\n".join(headline(analyze(folder)))
    rows = {row["run"].rpartition("-")[0]: row for row in json.loads((folder / "results.json").read_text())}
    assert run.data.metrics["best.accuracy"] == pytest.approx(rows["query-C1-N4-s0"]["accuracy"])
    assert run.data.metrics["reference.accuracy"] == pytest.approx(rows["none-N0-s0"]["accuracy"])
    written = {path.name for pattern in ("report.html", "*.png", "results.*") for path in folder.glob(pattern)}
    assert {file.path for file in client.list_artifacts(run_id)} == written > {"report.html", "results.csv"}
    assert [each.dataset.name for each in run.inputs.dataset_inputs] == ["train"]
    (tag,) = [v for k, v in client.get_experiment(run.info.experiment_id).tags.items() if k.endswith(run_id)]
    assert [chart["yaxis"]["key"] for chart in json.loads(tag)["compareRunCharts"]][-1] == "accuracy.test"


def test_a_report_waits_for_a_tracker_that_is_down(sweep_folder: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = sweep_folder()
    Tracker(folder, uri=f"sqlite:///{tmp_path}/file/mlflow.db").finish(wait=10)
    compare(folder, say=lambda _: None)
    before = Spool(folder).pending("extras")
    track_report(folder, MLflow())
    files = [name for name in folder.iterdir() if name.suffix in (".html", ".csv", ".png")]
    assert before == 0
    assert Spool(folder).pending("extras") == len(files) + 2  # results.json and the view besides
