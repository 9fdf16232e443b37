"""Real MLflow on SQLite in temporary folders, real processes, and trackers that are down, hang or refuse."""

import json
import logging
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from llava_mini.tracking.mlflow import MLflow, latest_sweep
from llava_mini.tracking.saved_view import KIND_TAG, MODEL_TRAINING, View, tag_key
from llava_mini.tracking.spool import DataInput, Spool, close_run
from llava_mini.tracking.tracker import (
    EXPERIMENT,
    Tracker,
    flatten,
    flush_spools,
    init_tracking,
)

# What stands behind it is done by several processes at once, forked so that MLflow is imported once for all.
AT_ONCE = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside a thread of pyarrow's
import mlflow.store.tracking.sqlalchemy_store, llava_mini.tracking.tracker
count = int(sys.argv.pop())
number = next((number for number in range(count) if os.fork() == 0), None)
if number is None:
    sys.exit(any([os.wait()[1] for _ in range(count)]))
"""

REPORT_FROM_A_PROCESS = """
import sys
from llava_mini.tracking.tracker import Tracker
folder, uri, parent = sys.argv[1:]
tracker = Tracker(folder, uri=uri, parent_run_id=parent or None, interval=0.05)
tracker.log_params({"compressor": {"C": 4}})
for step in range(20):
    tracker.log_metrics({"loss": step / 2}, step)
tracker.finish(wait=60)
"""


@pytest.fixture(scope="module")
def uri(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database that the tests here share."""
    return f"sqlite:///{shutil.copy(empty_database, tmp_path_factory.mktemp('shared') / 'mlflow.db')}"


class Refusing(BaseHTTPRequestHandler):
    """A server that wants a password."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b"You are not authenticated.")

    do_POST = do_PUT = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(params=["closed port", "401", "below a file", "a folder"])
def down(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Trackers that cannot work."""
    if request.param == "closed port":
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            port = closed.getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    elif request.param == "401":
        with HTTPServer(("127.0.0.1", 0), Refusing) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()
            thread.join()
    else:
        (tmp_path / "file").write_text("")
        (tmp_path / "folder").mkdir()
        yield f"sqlite:///{tmp_path}/" + {"below a file": "file/mlflow.db", "a folder": "folder"}[request.param]


@pytest.fixture
def hanging() -> Iterator[str]:
    """A server that accepts and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


TRAINED_ON = DataInput("instruct-train", "0123456789abcdef" * 4, "data/world/instruct-train", 64, "training")
VIEW = View("a sweep", [["tokens", "accuracy.test"]], ["C"], ["tokens", "accuracy.test"], "tokens")


def report(folder: Path, uri: str) -> Tracker:
    """Reports of every kind, 12 lines with the status that the tracker adds; the last is added by its `finish`."""
    (folder / "model").mkdir(parents=True, exist_ok=True)
    (folder / "model" / "config.json").write_text("{}")
    (folder / "report.html").write_text("<h1>98 %</h1>")
    tracker = Tracker(folder, uri=uri, interval=0.05)
    tracker.log_file("report.html")
    tracker.log_file("model")
    tracker.log_inputs([TRAINED_ON])
    tracker.show(VIEW)
    tracker.log_params({"seed": 3, "compressor": {"C": 4}})
    for step in range(5):
        tracker.log_metrics({"loss": 5.0 - step}, step)
    tracker.set_tags({"commit": "abc"})
    return tracker


def stored(uri: str, folder: Path) -> Run:
    run_id = Spool(folder).run_id()
    assert run_id is not None
    return MlflowClient(uri).get_run(run_id)


def files(uri: str, folder: Path) -> list[str]:
    client, run_id = MlflowClient(uri), stored(uri, folder).info.run_id
    return sorted(file.path for place in (None, "model") for file in client.list_artifacts(run_id, place))


def experiment_tags(uri: str, name: str = EXPERIMENT) -> dict[str, str]:
    experiment = MlflowClient(uri).get_experiment_by_name(name)
    assert experiment is not None
    return dict(experiment.tags)


def losses(uri: str, folder: Path) -> list[tuple[int, float]]:
    history = MlflowClient(uri).get_metric_history(stored(uri, folder).info.run_id, "loss")
    return [(metric.step, metric.value) for metric in history]


EXPECTED_LOSSES = [(step, 5.0 - step) for step in range(5)]
EXPECTED_FILES = ["model", "model/config.json", "report.html"]


def assert_all_is_stored(uri: str, folder: Path, *further_files: str) -> None:
    """That MLflow has what `report` has reported, once."""
    run = stored(uri, folder)
    assert (run.info.status, run.data.params) == ("FINISHED", {"seed": "3", "compressor.C": "4"})
    assert run.data.tags["commit"] == "abc"
    assert losses(uri, folder) == EXPECTED_LOSSES
    assert files(uri, folder) == sorted([*EXPECTED_FILES, *further_files])
    (read,) = run.inputs.dataset_inputs
    assert (read.dataset.name, read.dataset.digest) == ("instruct-train", TRAINED_ON.fingerprint[:36])
    assert json.loads(read.dataset.profile) == {"num_rows": 64, "fingerprint": TRAINED_ON.fingerprint}
    assert [(tag.key, tag.value) for tag in read.tags] == [("mlflow.data.context", "training")]
    assert json.loads(experiment_tags(uri)[tag_key(run.info.run_id)])["name"] == "a sweep"


def test_a_run_is_stored(uri: str, tmp_path: Path) -> None:
    tracker = report(tmp_path / "run-a", uri)
    assert tracker.run_id(wait=20) is not None
    assert tracker.finish(wait=20) == 0
    assert stored(uri, tmp_path / "run-a").info.run_name == "run-a"
    assert_all_is_stored(uri, tmp_path / "run-a")
    assert flush_spools([tmp_path / "run-a"]) == 0


def test_files_lie_beside_an_sqlite_database(new_tracker: str, tmp_path: Path) -> None:
    tracker = Tracker(tmp_path / "run", uri=new_tracker, experiment="another, which is made here")
    (tmp_path / "run" / "report.html").write_text("<h1>98 %</h1>")
    tracker.log_file("report.html")
    assert tracker.finish(wait=20) == 0
    run_id = stored(new_tracker, tmp_path / "run").info.run_id
    assert (tmp_path / "artifacts" / run_id / "artifacts" / "report.html").read_text() == "<h1>98 %</h1>"


def test_children_are_shown_under_their_parent(uri: str, tmp_path: Path) -> None:
    parent = Tracker(tmp_path / "parent", uri=uri)
    parent_id = parent.run_id(wait=20)
    Tracker(tmp_path / "child", uri=uri, parent_run_id=parent_id).finish(wait=20)
    parent.finish(wait=20)
    assert stored(uri, tmp_path / "child").data.tags["mlflow.parentRunId"] == parent_id


def test_six_processes_make_a_database_at_once_and_report_their_runs(tmp_path: Path) -> None:
    # Without a lock all but one of them fail, with "table experiments already exists" and the like.
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    folders = [tmp_path / f"run-{i}" for i in range(6)]
    first = f"sys.argv[1] += str(number)\nllava_mini.tracking.tracker.init_tracking({uri!r})"
    code = f"{AT_ONCE}\n{first}\n{REPORT_FROM_A_PROCESS}"
    command = [sys.executable, "-c", code, str(tmp_path / "run-"), uri, "p", "6"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.stderr, done.returncode) == ("", 0)
    assert flush_spools(folders) == 0
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 6
    for folder in folders:
        assert losses(uri, folder) == [(step, step / 2) for step in range(20)]


def test_a_tracker_that_is_down_is_made_up_for(
    down: str, uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, start = tmp_path / "run", time.monotonic()
    with caplog.at_level(logging.WARNING):
        init_tracking(down)
        tracker = report(folder, down)
        assert tracker.run_id(wait=10) is None
        assert tracker.finish(wait=10) == 13
    assert time.monotonic() - start < 8
    assert len([r for r in caplog.records if "values wait in" in r.message]) == 1, "one warning an outage"
    assert all("\n" not in record.message for record in caplog.records)
    assert Spool(folder).run_id() is None
    assert flush_spools([folder]) == 13  # running, 2 files, inputs, view, params, 5 metrics, tags, finished: still down
    assert flush_spools([folder], uri) == 0
    assert_all_is_stored(uri, folder)


def test_a_tracker_whose_disk_is_full_is_made_up_for(
    uri: str,
    tmp_path: Path,
    full_disk: Callable[[int], AbstractContextManager[None]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "run"
    with full_disk(8192), caplog.at_level(logging.WARNING):  # the spool is smaller, the database larger
        assert report(folder, uri).finish(wait=20) == 13
    assert len([r for r in caplog.records if "values wait in" in r.message]) == 1
    assert flush_spools([folder]) == 0
    assert_all_is_stored(uri, folder)


def test_an_artifact_store_whose_disk_is_full_holds_back_files_only(
    uri: str,
    tmp_path: Path,
    full_disk: Callable[[int], AbstractContextManager[None]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    folders = [tmp_path / "run-a", tmp_path / "run-b"]
    enough = Path(uri.removeprefix("sqlite:///")).stat().st_size + 2**20
    for folder in folders:
        (folder / "model").mkdir(parents=True)
        with (folder / "model" / "weights.bin").open("wb") as weights:
            weights.truncate(enough + 2**20)
    with full_disk(enough), caplog.at_level(logging.WARNING):  # for the database, not for the weights
        for folder in folders:
            assert report(folder, uri).finish(wait=20) == 3  # the model, and inputs and view after it
            assert (stored(uri, folder).info.status, losses(uri, folder)) == ("FINISHED", EXPECTED_LOSSES)
        assert len([r for r in caplog.records if "does not take inputs, files or views" in r.message]) == 2
        for folder in folders:
            close_run(folder, "KILLED")
        assert flush_spools(folders) == 6
        assert [stored(uri, folder).info.status for folder in folders] == ["KILLED", "KILLED"]
    for folder in folders:
        close_run(folder, "FINISHED")
    assert flush_spools(folders) == 0
    for folder in folders:
        assert_all_is_stored(uri, folder, "model/weights.bin")


def test_lines_sent_twice_are_stored_once(uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    report(folder, uri).finish(wait=20)
    run_id = Spool(folder).run_id()
    origin = json.loads((folder / "tracking.json").read_text())
    # As after a kill between MLflow's answer and the note of it.
    (folder / "tracking.json").write_text(json.dumps({**origin, "run_id": None, "sent_bytes": 0,
                                                        "sent_extras_bytes": 0}))  # fmt: skip
    assert flush_spools([folder]) == 0
    assert Spool(folder).run_id() == run_id
    assert_all_is_stored(uri, folder)


def test_a_hanging_server_does_not_slow_a_run(hanging: str, tmp_path: Path) -> None:
    start = time.monotonic()
    tracker = report(tmp_path / "run", hanging)
    assert time.monotonic() - start < 0.5
    tracker.finish(wait=0.5)
    assert time.monotonic() - start < 2


def test_a_run_that_comes_back_continues_in_its_mlflow_run(uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    report(folder, uri).finish("FAILED", wait=20)
    first = stored(uri, folder)
    assert first.info.status == "FAILED"
    again = Tracker(folder, uri=uri)
    again.log_metrics({"loss": 0.0}, 5)
    again.finish(wait=20)
    second = stored(uri, folder)
    assert second.info.run_id == first.info.run_id
    assert second.info.status == "FINISHED"
    assert losses(uri, folder) == [*EXPECTED_LOSSES, (5, 0.0)]


def test_a_killed_run_is_closed_by_another_process(uri: str, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(REPORT_FROM_A_PROCESS.replace("tracker.finish(wait=60)", "import os; os.kill(os.getpid(), 9)"))
    folder = tmp_path / "run"
    assert subprocess.run([sys.executable, str(script), str(folder), uri, ""], check=False).returncode == -9
    close_run(folder, "KILLED")
    assert flush_spools([folder]) == 0
    assert stored(uri, folder).info.status == "KILLED"
    assert len(losses(uri, folder)) == 20


def test_what_mlflow_rejects_does_not_hold_back_the_rest(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    tracker = Tracker(folder, uri=uri)
    tracker.log_params({"seed": 1})
    tracker.log_params({"seed": 2})
    tracker.log_params({"a[0]*": "odd name", "long": "x" * 7000})  # more than MLflow stores
    tracker.log_metrics({"loss": float("nan")}, 0)
    tracker.finish(wait=20)
    assert flush_spools([folder]) == 0
    assert stored(uri, folder).data.params == {"seed": "1", "a_0__": "odd name", "long": "x" * 6000}
    assert [record.message for record in caplog.records if "MLflow rejects {'seed': 2}" in record.message]


@pytest.mark.parametrize("path", ["gone.html", "../outside.html", "link.html"])
def test_a_file_that_is_gone_or_lies_elsewhere_is_not_sent(
    uri: str, tmp_path: Path, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    (tmp_path / "outside.html").write_text("secret")
    folder.mkdir()
    (folder / "link.html").symlink_to("../outside.html")
    (folder / "report.html").write_text("")
    tracker = Tracker(folder, uri=uri)
    tracker.log_file(path)
    tracker.log_file("report.html")
    assert tracker.finish(wait=20) == 0
    assert files(uri, folder) == ["report.html"]
    assert [record.message for record in caplog.records if f"MLflow rejects {{'path': '{path}'}}" in record.message]


def test_a_file_is_sent_again_when_it_has_changed(uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    report(folder, uri).finish(wait=20)
    (folder / "report.html").write_text("<h1>99 %</h1>")
    Spool(folder).append("file", {"path": "report.html"})
    assert flush_spools([folder]) == 0
    there = MlflowClient(uri).download_artifacts(stored(uri, folder).info.run_id, "report.html", str(tmp_path))
    assert Path(there).read_text() == "<h1>99 %</h1>"


def test_an_experiment_is_of_the_kind_that_trains_models(tmp_path: Path, uri: str) -> None:
    assert experiment_tags(uri)[KIND_TAG] == MODEL_TRAINING
    client = MlflowClient(uri)
    for name, tags in (("made by others", {}), ("chosen by others", {KIND_TAG: "genai_development"})):
        client.create_experiment(name, tags=tags)
        tracker = Tracker(tmp_path / name, uri=uri, experiment=name)
        tracker.show(VIEW)
        tracker.finish(wait=20)
    assert experiment_tags(uri, "made by others")[KIND_TAG] == MODEL_TRAINING
    assert experiment_tags(uri, "chosen by others")[KIND_TAG] == "genai_development"


def test_the_latest_sweep_is_the_last_shown_and_not_deleted(
    new_tracker: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = new_tracker
    assert latest_sweep(uri, "http://here") == []
    ids = []
    for name in ("first", "second"):
        tracker = Tracker(tmp_path / name, uri=uri)
        tracker.show(VIEW)
        tracker.finish(wait=20)
        ids.append(stored(uri, tmp_path / name).info.run_id)
    charts, runs = latest_sweep(uri, "http://here")
    experiment = stored(uri, tmp_path / "first").info.experiment_id
    assert runs == f"http://here/#/experiments/{experiment}/runs?workflowType=machine_learning"
    assert charts == f"{runs}&viewStateShareKey=llava-mini.{ids[1]}&compareRunsMode=CHART"
    MlflowClient(uri).delete_run(ids[1])
    assert ids[0] in latest_sweep(uri, "http://here")[0]
    (tmp_path / "file").write_text("")
    assert latest_sweep(f"sqlite:///{tmp_path}/file/mlflow.db", "http://here") == []
    assert "is not available" in caplog.text


def test_spools_without_a_parent_get_one_later(down: str, uri: str, tmp_path: Path) -> None:
    report(tmp_path / "run", down).finish(wait=10)
    assert flush_spools([tmp_path / "run", tmp_path / "no such run"], uri, parent_run_id="p123") == 0
    assert stored(uri, tmp_path / "run").data.tags["mlflow.parentRunId"] == "p123"


def test_the_uri_is_the_argument_the_variable_or_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert MLflow().address(None) == f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    assert MLflow().address(None) == "http://tracker:5000"
    assert MLflow().address("sqlite:///a.db") == f"sqlite:///{tmp_path}/a.db"


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [1, 2]}}, "e": None}) == {"a.b": 1, "a.c.d": [1, 2], "e": None}
