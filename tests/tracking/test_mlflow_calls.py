"""What MLflow refuses, old servers and strict ones; `test_tracking.py` shows what it takes."""

from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND, INTERNAL_ERROR, PERMISSION_DENIED
from mlflow.tracking import MlflowClient

from llava_mini.tracking.mlflow import sqlite_path
from llava_mini.tracking.saved_view import View
from llava_mini.tracking.spool import DataInput, Spool
from llava_mini.tracking.tracker import Tracker

VIEW = View("a sweep", [], ["C"], ["tokens"], "tokens")
READ = DataInput("train", "ab" * 32, "s3://bucket/train", 64, "training")


def report(folder: Path, uri: str) -> int:
    """Reports a view, data and a file; the number of lines that wait."""
    tracker = Tracker(folder, uri=uri, interval=0.05)
    (folder / "report.html").write_text("")
    tracker.show(VIEW)
    tracker.log_inputs([READ])
    tracker.log_file("report.html")
    return tracker.finish(wait=20)


@pytest.mark.parametrize("method", ["set_experiment_tag", "log_inputs"])
@pytest.mark.parametrize("code", [PERMISSION_DENIED, ENDPOINT_NOT_FOUND])
def test_what_a_server_never_takes_is_dropped_and_said(
    new_tracker: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
    code: int,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("not for you", error_code=code)

    monkeypatch.setattr(MlflowClient, method, refuse)
    assert report(tmp_path / "run", new_tracker) == 0
    run_id = Spool(tmp_path / "run").run_id()
    assert run_id is not None
    assert [file.path for file in MlflowClient(new_tracker).list_artifacts(run_id)] == ["report.html"]
    assert len([record for record in caplog.records if record.message.startswith("MLflow rejects")]) == 1


def test_what_a_server_may_take_later_waits(new_tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MlflowException("try again", error_code=INTERNAL_ERROR)

    monkeypatch.setattr(MlflowClient, "log_inputs", fail)
    assert report(tmp_path / "run", new_tracker) == 2


@pytest.mark.parametrize(
    ("source", "kind", "expected"),
    [
        ("data/train", "local", '{"uri": "data/train"}'),
        ("s3://bucket/train", "s3", '{"uri": "s3://bucket/train"}'),
        ("https://host/train", "http", '{"url": "https://host/train"}'),
    ],
)
def test_where_data_lie_is_said_in_mlflows_terms(
    new_tracker: str, tmp_path: Path, source: str, kind: str, expected: str
) -> None:
    tracker = Tracker(tmp_path / "run", uri=new_tracker)
    tracker.log_inputs([DataInput("train", "ab" * 32, source, 64, "training")])
    assert tracker.finish(wait=20) == 0
    run_id = Spool(tmp_path / "run").run_id()
    assert run_id is not None
    (read,) = MlflowClient(new_tracker).get_run(run_id).inputs.dataset_inputs
    assert (read.dataset.source_type, read.dataset.source) == (kind, expected)


def test_the_file_of_a_tracker() -> None:
    assert sqlite_path("sqlite:////a/mlflow.db") == Path("/a/mlflow.db")
    assert sqlite_path("sqlite:///mlruns/mlflow.db") == Path("mlruns/mlflow.db")
    assert sqlite_path("http://host:5000") is None
