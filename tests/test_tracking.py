"""Real MLflow on SQLite in temporary folders, real processes, and trackers that are down, hang or refuse."""

import json
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from llava_mini.spool import Spool, close_run
from llava_mini.tracking import (
    EXPERIMENT,
    Tracker,
    flatten,
    flush_spools,
    init_tracking,
    tracking_uri,
)

# What stands behind it is done by several processes at once, forked so that MLflow is imported once for all.
AT_ONCE = """
import os, sys
import mlflow.store.tracking.sqlalchemy_store, llava_mini.tracking
count = int(sys.argv.pop())
number = next((number for number in range(count) if os.fork() == 0), None)
if number is None:
    sys.exit(any([os.wait()[1] for _ in range(count)]))
"""

REPORT_FROM_A_PROCESS = """
import sys
from llava_mini.tracking import Tracker
folder, uri, parent = sys.argv[1:]
tracker = Tracker(folder, uri=uri, parent_run_id=parent or None, interval=0.05)
tracker.log_params({"compressor": {"C": 4}})
for step in range(20):
    tracker.log_metrics({"loss": step / 2}, step)
tracker.finish(wait=60)
"""


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database that is initialised once, since that takes MLflow seconds."""
    return init_tracking(f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db")


@pytest.fixture(params=["closed port", "below a file", "a folder"])
def down(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Trackers that cannot work."""
    if request.param == "closed port":
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            return f"http://127.0.0.1:{closed.getsockname()[1]}"
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    return f"sqlite:///{tmp_path}/" + {"below a file": "file/mlflow.db", "a folder": "folder"}[request.param]


@pytest.fixture
def hanging() -> Iterator[str]:
    """A server that accepts and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def report(folder: Path, uri: str) -> Tracker:
    tracker = Tracker(folder, uri=uri, interval=0.05)
    tracker.log_params({"seed": 3, "compressor": {"C": 4}})
    for step in range(5):
        tracker.log_metrics({"loss": 5.0 - step}, step)
    tracker.set_tags({"commit": "abc"})
    return tracker


def stored(uri: str, folder: Path) -> Run:
    run_id = Spool(folder).run_id()
    assert run_id is not None
    return MlflowClient(uri).get_run(run_id)


def losses(uri: str, folder: Path) -> list[tuple[int, float]]:
    history = MlflowClient(uri).get_metric_history(stored(uri, folder).info.run_id, "loss")
    return [(metric.step, metric.value) for metric in history]


EXPECTED_LOSSES = [(step, 5.0 - step) for step in range(5)]


def test_a_run_is_stored(uri: str, tmp_path: Path) -> None:
    tracker = report(tmp_path / "run-a", uri)
    assert tracker.run_id(wait=20) is not None
    tracker.finish(wait=20)
    run = stored(uri, tmp_path / "run-a")
    assert run.info.run_name == "run-a"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "3", "compressor.C": "4"}
    assert run.data.tags["commit"] == "abc"
    assert losses(uri, tmp_path / "run-a") == EXPECTED_LOSSES
    assert flush_spools([tmp_path / "run-a"]) == 0


def test_children_are_shown_under_their_parent(uri: str, tmp_path: Path) -> None:
    parent = Tracker(tmp_path / "parent", uri=uri)
    parent_id = parent.run_id(wait=20)
    Tracker(tmp_path / "child", uri=uri, parent_run_id=parent_id).finish(wait=20)
    parent.finish(wait=20)
    assert stored(uri, tmp_path / "child").data.tags["mlflow.parentRunId"] == parent_id


def test_a_database_may_be_initialised_by_several_processes_at_once(tmp_path: Path) -> None:
    # Without a lock all but one of them fail, with "table experiments already exists" and the like.
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    code = f"{AT_ONCE}\nllava_mini.tracking.init_tracking({uri!r})"
    done = subprocess.run([sys.executable, "-c", code, "3"], capture_output=True, text=True, check=False, timeout=120)
    assert (done.stderr, done.returncode) == ("", 0)


def test_six_runs_start_at_once_on_a_fresh_database(tmp_path: Path) -> None:
    uri = init_tracking(f"sqlite:///{tmp_path}/new/mlflow.db")
    folders = [tmp_path / f"run-{i}" for i in range(6)]
    code = f"{AT_ONCE}\nsys.argv[1] += str(number)\n{REPORT_FROM_A_PROCESS}"
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
        tracker.finish(wait=10)
    assert time.monotonic() - start < 8
    assert len([r for r in caplog.records if "values wait in" in r.message]) == 1, "one warning an outage"
    assert all("\n" not in record.message for record in caplog.records)
    assert Spool(folder).run_id() is None
    assert flush_spools([folder]) == 9  # running, params, 5 metrics, tags, finished: still down
    assert flush_spools([folder], uri) == 0
    run = stored(uri, folder)
    assert (run.info.status, run.data.params["seed"], run.data.tags["commit"]) == ("FINISHED", "3", "abc")
    assert losses(uri, folder) == EXPECTED_LOSSES


def test_lines_sent_twice_are_stored_once(uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    report(folder, uri).finish(wait=20)
    run_id = Spool(folder).run_id()
    origin = json.loads((folder / "tracking.json").read_text())
    # As after a kill between MLflow's answer and the note of it.
    (folder / "tracking.json").write_text(json.dumps({**origin, "run_id": None, "sent_bytes": 0}))
    assert flush_spools([folder]) == 0
    assert Spool(folder).run_id() == run_id
    assert losses(uri, folder) == EXPECTED_LOSSES


def test_a_hanging_server_does_not_slow_a_run(hanging: str, tmp_path: Path) -> None:
    start = time.monotonic()
    tracker = report(tmp_path / "run", hanging)
    assert time.monotonic() - start < 0.5
    tracker.finish(wait=0.5)
    assert time.monotonic() - start < 2


def test_a_run_that_comes_back_goes_on_in_its_mlflow_run(uri: str, tmp_path: Path) -> None:
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
    tracker.log_params({"a[0]*": "odd name"})
    tracker.log_metrics({"loss": float("nan")}, 0)
    tracker.finish(wait=20)
    assert flush_spools([folder]) == 0
    assert stored(uri, folder).data.params == {"seed": "1", "a_0__": "odd name"}
    assert [record.message for record in caplog.records if "MLflow rejects {'seed': 2}" in record.message]


def test_spools_without_a_parent_get_one_later(down: str, uri: str, tmp_path: Path) -> None:
    report(tmp_path / "run", down).finish(wait=10)
    assert flush_spools([tmp_path / "run", tmp_path / "no such run"], uri, parent_run_id="p123") == 0
    assert stored(uri, tmp_path / "run").data.tags["mlflow.parentRunId"] == "p123"


def test_the_uri_is_the_argument_the_variable_or_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri() == f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    assert tracking_uri() == "http://tracker:5000"
    assert tracking_uri("sqlite:///a.db") == f"sqlite:///{tmp_path}/a.db"


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [1, 2]}}, "e": None}) == {"a.b": 1, "a.c.d": [1, 2], "e": None}
