"""A real sweep of two short runs, from the command line to its report and its MLflow runs."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from tests.several_ranks import ROOT, Nursery

from llava_mini.cli import main
from llava_mini.commands.sweep import DEFAULT_FOLDER, split_folder
from llava_mini.errors import UserError

KINDS = {"color", "shape", "digit", "count", "exist", "where"}


class Swept:
    """What `llava-mini sweep` was given, said and left."""

    def __init__(self, folder: Path, arguments: list[str], status: int, said: str) -> None:
        self.folder, self.arguments, self.status, self.said = folder, arguments, status, said

    def runs(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads((self.folder / "results.json").read_text())
        return rows


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MLFLOW_TRACKING_URI of all tests here: an SQLite file that is not there yet."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri


@pytest.fixture(scope="module")
def swept(nursery: Nursery, database: str, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """The reference and query C=1, in a world of their own."""
    folder = tmp_path_factory.mktemp("sweeps") / "small"
    world = tmp_path_factory.mktemp("world") / "toyworld"
    arguments = ["recipe=smoke", "compressor.C=1", f"data.folder={world}", f"--out={folder}",
                 "tracking.log_model=true"]  # fmt: skip
    done = nursery.call("sweep", *arguments, environment={"MLFLOW_TRACKING_URI": database})
    return Swept(folder, arguments, *done)


@pytest.fixture(scope="module")
def tracked(swept: Swept, database: str) -> list[Run]:
    """All MLflow runs, the parent first."""
    client = MlflowClient(database)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return sorted(client.search_runs(experiments), key=lambda run: "mlflow.parentRunId" in run.data.tags)


def test_both_runs_finish_and_the_report_is_the_last_line(swept: Swept) -> None:
    assert swept.status == 0, swept.said
    report = Path(swept.said.splitlines()[-1])
    assert report.resolve() == (swept.folder / "report.html").resolve()
    html = report.read_text()
    assert "query C=1, N=4" in html and 'src="data:image/png' in html and "2 of 2 runs finished" in html
    for name in ("accuracy_vs_tokens.png", "accuracy_vs_flops.png", "accuracy_by_kind.png", "results.csv"):
        assert (swept.folder / name).stat().st_size > 0


def test_a_run_of_a_sweep_equals_one_of_train(swept: Swept, nursery: Nursery, tmp_path: Path) -> None:
    own = [argument for argument in swept.arguments if argument.startswith(("recipe", "compressor", "data"))]
    status, said = nursery.call("train", *own, f"run_dir={tmp_path / 'run'}", "tracking.enabled=false")
    assert status == 0, said
    [of_sweep] = swept.folder.glob("runs/query-*")
    for split in ("val", "test"):
        with (
            np.load(of_sweep / f"predictions_{split}.npz") as one,
            np.load(tmp_path / "run" / f"predictions_{split}.npz") as other,
        ):
            assert one.files == other.files
            assert all(np.array_equal(one[name], other[name]) for name in one.files)


def test_results_hold_what_was_varied_and_measured(swept: Swept) -> None:
    reference, query = swept.runs()
    assert [reference[key] for key in ("compressor", "compressor.C", "tokens", "n_fusion")] == ["none", None, 64, 0]
    assert [query[key] for key in ("compressor", "compressor.C", "tokens", "n_fusion")] == ["query", 1, 1, 4]
    for row in (reference, query):
        assert (row["status"], row["seed"], row["fusion.num_layers"]) == ("finished", 0, row["n_fusion"])
        assert 0 <= row["ci_low"] <= row["accuracy"] <= row["ci_high"] <= 1
        assert row["prefill_flops"] > 1e6 and row["peak_memory_bytes"] > 1e8 and row["seconds"] > 0
    assert query["prefill_flops"] < reference["prefill_flops"]


def test_the_saving_of_shared_features_is_said(swept: Swept) -> None:
    # 64 pictures for training, 16 for validation, 16 for test
    said = re.findall(r"vision features of 96 images: computed once in (\S+) s, shared by the 2 runs to do, "
                      r"which saves (\S+) s", swept.said)  # fmt: skip
    assert len(said) == 1 and said[0][0] == said[0][1], "two runs save what one computation costs"


def test_mlflow_holds_a_parent_with_a_run_for_each(swept: Swept, tracked: list[Run]) -> None:
    parent, *children = tracked
    assert len(children) == 2 and {run.info.status for run in tracked} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.run_id for run in children} == {row["mlflow_run_id"] for row in swept.runs()}
    assert {run.data.tags["commit"] for run in tracked} == {parent.data.tags["commit"]}


def test_mlflow_holds_where_each_run_comes_from_and_the_data_that_it_read(swept: Swept, tracked: list[Run]) -> None:
    parent, *children = tracked
    given = [argument for argument in swept.arguments if not argument.startswith("tracking.")]
    assert shlex.split(parent.data.tags["mlflow.source.name"]) == ["llava-mini", "sweep", *given]
    for run in children:
        command = run.data.tags["mlflow.source.name"]
        assert command.startswith("llava-mini train") and "recipe=smoke" in command and "tracking." not in command
    for run in tracked:
        inputs = {read.dataset.name: read.tags[0].value for read in run.inputs.dataset_inputs}
        assert inputs == {"board-train": "training", "board-val": "validation", "board-test": "test"}
    world = json.loads((Path(children[0].data.params["data.folder"]) / "world.json").read_text())
    for read in children[0].inputs.dataset_inputs:
        assert world["sets"][read.dataset.name]["fingerprint"].startswith(read.dataset.digest)


def test_mlflow_holds_the_report_and_the_models(swept: Swept, tracked: list[Run], database: str) -> None:
    client, (parent, *children) = MlflowClient(database), tracked
    held = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert held == {"report.html", "results.csv", "results.json", *(path.name for path in swept.folder.glob("*.png"))}
    for sentence in parent.data.tags["mlflow.note.content"].split("\n\n"):
        assert sentence in swept.said
    by_row = {row["compressor"]: row["accuracy"] for row in swept.runs()}
    assert parent.data.metrics["reference.accuracy"] == pytest.approx(by_row["none"])
    assert parent.data.metrics["difference.accuracy.query-C1-N4"] == pytest.approx(by_row["query"] - by_row["none"])
    for run in children:
        files = {file.path for file in client.list_artifacts(run.info.run_id, "model")}
        assert {"model/config.json", "model/model.safetensors", "model/processor_config.json"} <= files


@pytest.mark.parametrize("row", [0, 1], ids=["none", "query"])
def test_an_mlflow_run_holds_config_and_measurements(swept: Swept, tracked: list[Run], row: int) -> None:
    result = swept.runs()[row]
    run = next(run for run in tracked if run.info.run_id == result["mlflow_run_id"]).data
    config = yaml.safe_load((swept.folder / "runs" / result["run"] / "config.yaml").read_text())
    assert run.params.get("compressor.C") == (None if result["C"] is None else str(result["C"]))
    assert run.params["fusion.num_layers"] == str(result["n_fusion"])
    for key in ("compressor", "C", "n_fusion", "tokens", "seed"):
        assert run.params.get(key) == (None if result[key] is None else str(result[key]))
    assert (run.params["order"], run.params["finetune"]) == ("release", "full")
    for key in ("seed", "trainer.max_steps", "stage._target_", "data.folder", "model.text_config.hidden_size"):
        value = config
        for part in key.split("."):
            value = value[part]
        assert run.params[key] == str(value)
    for key in ("tokens", "n_fusion", "prefill_flops", "peak_memory_bytes"):
        assert run.metrics[key] == pytest.approx(result[key])
    assert run.metrics["cpu_seconds"] > 0
    assert run.metrics["accuracy.test"] == pytest.approx(result["accuracy"])
    assert {f"params.{part}" for part in ("vision_tower", "projector", "language_model")} <= set(run.metrics)
    assert (run.metrics["params.compressor"] > 0) == (row == 1) == (run.metrics["params.prefusion"] > 0)
    assert {f"accuracy_by_kind.test.{kind}" for kind in KINDS} <= set(run.metrics)


def test_the_same_command_runs_nothing_again(
    swept: Swept, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("result.json", "config.yaml", "log.txt", "history.jsonl")
    before = {path: path.stat().st_mtime_ns for name in names for path in swept.folder.glob(f"runs/*/{name}")}
    assert len(before) == 2 * len(names)
    monkeypatch.chdir(ROOT)
    with caplog.at_level("INFO", "llava_mini"):
        assert main(["sweep", *swept.arguments]) == 0
    said = capfd.readouterr().out
    assert "2 of 2 runs are finished" in said and said.splitlines()[-1].endswith("report.html")
    assert "vision features" not in caplog.text, "no run is left that would share them"
    assert {path: path.stat().st_mtime_ns for name in names for path in swept.folder.glob(f"runs/*/{name}")} == before


def test_the_folder_of_a_sweep() -> None:
    assert split_folder(["a=1", "--out=x", "b=2"]) == (Path("x"), ["a=1", "b=2"])
    assert split_folder(["a=1"]) == (Path(DEFAULT_FOLDER), ["a=1"])
    assert split_folder(["--out=a=b, (c) é#"])[0] == Path("a=b, (c) é#")
    with pytest.raises(UserError, match="a folder is needed"):
        split_folder(["--out="])
    with pytest.raises(UserError, match="sweep_dir=a: it is --out a now"):
        split_folder(["a=1", "sweep_dir=a"])
