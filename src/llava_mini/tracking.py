"""MLflow that can neither end nor slow a run.

A `Tracker` only writes lines into the spool of its run's folder; a background thread sends them to MLflow, and what
it could not send (the tracker is down, the run was killed) waits there for `flush_spools`. A line that is sent
twice is stored once: lines carry their time, and MLflow keeps one metric per time, step and value.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import sqlite3
import threading
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from llava_mini.spool import Kind, Line, Origin, Spool, Status

# mlflow reads these when it is imported. One quick attempt each: the spool is what tries again.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

log = logging.getLogger("llava_mini.tracking")

DEFAULT_URI = "sqlite:///mlruns/mlflow.db"
EXPERIMENT = "llava-mini"

# What no repetition can mend. Such a line is dropped with a warning, else it would hold back all that follow.
_REJECTED = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"}
_TOKEN_TAG = "llava_mini.token"


def tracking_uri(uri: str | None = None) -> str:
    """`uri`, else MLFLOW_TRACKING_URI, else the default; a relative SQLite path is made absolute."""
    chosen = uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    path = _sqlite_path(chosen)
    return chosen if path is None else f"sqlite:///{path.absolute()}"


def init_tracking(uri: str | None = None, experiment: str = EXPERIMENT) -> str:
    """Makes the database and the experiment, so that any number of runs can then start at once.

    Returns:
        The URI in use (see `tracking_uri`). A tracker that is down is a warning, never an exception.
    """
    resolved = tracking_uri(uri)
    try:
        _experiment_id(_client(resolved), experiment)
    except Exception as error:  # noqa: BLE001  whatever a tracker raises, work goes on without it
        log.warning("MLflow at %s is not available; values are spooled and sent later (%s)", resolved, _short(error))
    return resolved


def flush_spools(folders: Iterable[Path], uri: str | None = None, parent_run_id: str | None = None) -> int:
    """Sends what earlier runs could not send; stops at the first failure, never raises.

    Args:
        folders: run folders; those without a spool are passed over.
        uri: where to; default is where each run meant to send.
        parent_run_id: the parent of runs that were started when no parent could be made.

    Returns:
        The number of lines that still wait.
    """
    spools = [spool for spool in map(Spool, folders) if spool.pending()]
    for spool in spools:
        spool.redirect(None if uri is None else tracking_uri(uri), parent_run_id)
        if not _deliver(spool):
            break
    return sum(spool.pending() for spool in spools)


class Tracker:
    """One MLflow run, reported through the spool in `folder`; no method raises or waits because of the tracker.

    Args:
        folder: where the spool lies; a folder that has one continues its MLflow run.
        name: the MLflow run's name; default is the folder's.
        uri: see `tracking_uri`.
        experiment: the MLflow experiment.
        parent_run_id: the MLflow run under which this one is shown.
        interval: seconds between two attempts to send; grows to a minute while the tracker is down.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str | None = None,
        uri: str | None = None,
        experiment: str = EXPERIMENT,
        parent_run_id: str | None = None,
        interval: float = 2.0,
    ) -> None:
        self.name = name or Path(folder).name
        self._spool = Spool(folder)
        self._spool.create(Origin(tracking_uri(uri), experiment, self.name, parent_run_id))
        self._spool.append("status", {"status": "RUNNING"})
        self._interval = interval
        self._stop = threading.Event()
        self._first_attempt = threading.Event()
        self._thread = threading.Thread(target=self._deliver_until_stopped, name="mlflow-spool", daemon=True)
        self._thread.start()

    def run_id(self, wait: float = 0.0) -> str | None:
        """The MLflow run's id, after at most `wait` seconds for the first attempt to make it; None: not made yet."""
        self._first_attempt.wait(wait)
        return self._spool.run_id()

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Logs a nested config as flat `a.b.c` parameters."""
        self._spool.append("params", flatten(params))

    def log_metrics(self, metrics: Mapping[str, Any], step: int = 0) -> None:
        """Logs numbers; a nested mapping becomes `a.b`."""
        self._spool.append("metrics", {key: float(value) for key, value in flatten(metrics).items()}, step)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Sets tags, over earlier ones of the same name."""
        self._spool.append("tags", flatten(tags))

    def finish(self, status: Status = "FINISHED", wait: float = 10.0) -> None:
        """Closes the MLflow run; waits at most `wait` seconds for what is unsent, the rest stays in the spool."""
        self._spool.append("status", {"status": status})
        self._stop.set()
        self._thread.join(wait)

    def _deliver_until_stopped(self) -> None:
        pause, up = self._interval, True
        while True:
            stopping = self._stop.is_set()
            up = _deliver(self._spool, logging.WARNING if up else logging.DEBUG)  # one warning an outage
            self._first_attempt.set()
            if stopping:
                return
            pause = self._interval if up else min(2 * pause, 60.0)
            self._stop.wait(pause)


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat


def _deliver(spool: Spool, log_level: int = logging.WARNING) -> bool:
    """Sends what is unsent; False when the tracker is down."""
    if not spool.pending():
        return True
    try:
        spool.deliver(_find_or_create_run, _send)
    except BlockingIOError:
        log.debug("%s is being sent by another process", spool.journal)
    except Exception as error:  # noqa: BLE001  whatever a tracker raises, work goes on without it
        log.log(log_level, "MLflow is not available; values wait in %s (%s)", spool.journal, _short(error))
        return False
    return True


def _client(uri: str) -> MlflowClient:
    """A client whose database is there and can be written.

    MLflow retries for 100 s an SQLite file that cannot be opened, and processes that initialise one at the same time
    crash: hence the file is first opened by hand, and by one process at a time.
    """
    path = _sqlite_path(uri)
    if path is None:
        return MlflowClient(uri)
    # These print tracebacks and progress for what is at most one warning here.
    for name in ("mlflow.store.db.utils", "alembic.runtime.migration"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with closing(sqlite3.connect(path, timeout=5.0, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("ROLLBACK")
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
        return client


def _sqlite_path(uri: str) -> Path | None:
    match = re.fullmatch(r"sqlite:///([^?:]+)", uri)
    return None if match is None else Path(match[1])


def _experiment_id(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return _experiment_id(client, name)  # another process was first


def _find_or_create_run(origin: Origin) -> str:
    client = _client(origin.uri)
    experiment_id = _experiment_id(client, origin.experiment)
    found = client.search_runs([experiment_id], f"tags.`{_TOKEN_TAG}` = '{origin.token}'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    tags = {_TOKEN_TAG: origin.token}
    if origin.parent_run_id is not None:
        tags["mlflow.parentRunId"] = origin.parent_run_id
    return str(client.create_run(experiment_id, tags=tags, run_name=origin.name).info.run_id)


def _send(origin: Origin, lines: list[Line]) -> None:
    client = _client(origin.uri)
    try:
        if lines[0].kind == "status":
            _send_status(client, str(origin.run_id), lines[0])
        else:
            _send_batch(client, str(origin.run_id), lines)
    except MlflowException as error:
        if error.error_code not in _REJECTED:
            raise
        if len(lines) == 1:
            log.warning("MLflow rejects %s (%s)", lines[0].values, _short(error))
            return
        for line in lines:
            _send(origin, [line])


def _send_status(client: MlflowClient, run_id: str, line: Line) -> None:
    if line.values["status"] == "RUNNING":
        client.update_run(run_id, status="RUNNING")
    else:
        client.set_terminated(run_id, status=line.values["status"], end_time=line.time_ms)


def _send_batch(client: MlflowClient, run_id: str, lines: list[Line]) -> None:
    def items(kind: Kind) -> list[tuple[str, Any, Line]]:
        return [(_key(key), value, line) for line in lines if line.kind == kind for key, value in line.values.items()]

    client.log_batch(
        run_id,
        metrics=[Metric(key, value, line.time_ms, line.step) for key, value, line in items("metrics")],
        params=[Param(key, str(value)) for key, value, _ in items("params")],
        tags=[RunTag(key, str(value)) for key, value, _ in items("tags")],
    )


def _key(name: str) -> str:
    """MLflow allows only these characters in a name."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
