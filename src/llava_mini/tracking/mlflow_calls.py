"""Send the lines of a spool to MLflow. This is the only module that writes to MLflow.

Every call may be repeated, because a failed call may still have arrived. A run is found again by its spool's token.
Metrics carry their time. Tags, files, data sets and views overwrite themselves.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from llava_mini.files import locked
from llava_mini.tracking.mlflow import sqlite_path
from llava_mini.tracking.saved_view import KIND_TAG, MODEL_TRAINING, View, created_ms, parent_of, tag_key, tag_value
from llava_mini.tracking.service import short
from llava_mini.tracking.spool import DataInput, Kind, Line, Origin

# mlflow reads these when it is imported. Each call is one quick attempt, because the spool does the retries.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

log = logging.getLogger("llava_mini.tracking.tracker")

# Errors that no retry can fix. Such a line is dropped with a warning, else it would block all lines after it.
_REJECTED = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"}
# Also dropped for inputs, files and views: a server may be too old for them, or not permit them to this user.
_NOT_ALLOWED = {"PERMISSION_DENIED", "ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED"}
_TOKEN_TAG = "llava_mini.token"
_DIGEST_LENGTH = 36  # characters, the longest that MLflow takes


def connect(uri: str) -> MlflowClient:
    """Return a client whose database exists and can be written.

    MLflow retries for 100 s to open an SQLite file that cannot be opened. Processes that initialize one at the same
    time crash. So the file is opened directly first, and by one process at a time.
    """
    path = sqlite_path(uri)
    if path is None:
        return MlflowClient(uri)
    # These print tracebacks and progress for what is at most one warning here.
    for name in ("mlflow.store.db.utils", "alembic.runtime.migration"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(path.name + ".lock")):
        with closing(sqlite3.connect(path, timeout=5.0, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("ROLLBACK")
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
        return client


def experiment_id(uri: str, client: MlflowClient, name: str) -> str:
    """Return the id of the named experiment, created if missing. An SQLite tracker's files are next to its database."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    database = sqlite_path(uri)
    files = None if database is None else str(database.absolute().parent / "artifacts")
    try:
        return str(client.create_experiment(name, files, {KIND_TAG: MODEL_TRAINING}))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return experiment_id(uri, client, name)  # another process was first


def find_or_create_run(origin: Origin) -> str:
    """Return the id of a spool's MLflow run, created if missing."""
    client = connect(origin.uri)
    experiment = experiment_id(origin.uri, client, origin.experiment)
    found = client.search_runs([experiment], f"tags.`{_TOKEN_TAG}` = '{origin.token}'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    tags = {_TOKEN_TAG: origin.token}
    if origin.parent_run_id is not None:
        tags["mlflow.parentRunId"] = origin.parent_run_id
    return str(client.create_run(experiment, tags=tags, run_name=origin.name).info.run_id)


def send(folder: Path, origin: Origin, lines: list[Line]) -> None:
    """Send lines that fit in one call, see `Spool.deliver`. What MLflow rejects for good is dropped with a warning.

    `folder` is the spool's, which contains the files; the origin's run exists already.
    """
    client, run_id, first = connect(origin.uri), str(origin.run_id), lines[0]
    dropped = _REJECTED
    try:
        if first.kind == "status":
            _send_status(client, run_id, first)
        elif first.kind in ("inputs", "file", "view"):
            dropped = _REJECTED | _NOT_ALLOWED
            {"inputs": _send_inputs, "file": _send_file, "view": _send_view}[first.kind](client, run_id, folder, first)
        else:
            _send_batch(client, run_id, lines)
    except MlflowException as error:
        if error.error_code not in dropped:
            raise
        if len(lines) == 1:
            log.warning("MLflow rejects %s (%s)", first.values, short(error))
            return
        for line in lines:
            send(folder, origin, [line])


def latest_view(uri: str) -> tuple[str, str] | None:
    """Return the ids of experiment and parent run of the newest view whose parent is not deleted; None: no view."""
    client = connect(uri)
    found = [
        (created_ms(value), str(experiment.experiment_id), parent)
        for experiment in client.search_experiments()
        for key, value in experiment.tags.items()
        if (parent := parent_of(key)) is not None
    ]
    for _, experiment, parent in sorted(found, reverse=True):
        if client.search_runs([experiment], f"attributes.run_id = '{parent}'", max_results=1):  # none that is deleted
            return experiment, parent
    return None


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


def _send_inputs(client: MlflowClient, run_id: str, _: Path, line: Line) -> None:
    def dataset(of: DataInput) -> Dataset:
        scheme = of.source.partition("://")[0] if "://" in of.source else "local"
        source = {"url" if scheme.startswith("http") else "uri": of.source}
        profile = {"num_rows": of.samples, "fingerprint": of.fingerprint}
        kind = "http" if scheme == "https" else scheme
        return Dataset(of.name, of.fingerprint[:_DIGEST_LENGTH], kind, json.dumps(source), profile=json.dumps(profile))

    inputs = [DataInput(**values) for values in line.values["datasets"]]
    tagged = [DatasetInput(dataset(each), [InputTag("mlflow.data.context", each.context)]) for each in inputs]
    client.log_inputs(run_id, datasets=tagged)


def _send_file(client: MlflowClient, run_id: str, folder: Path, line: Line) -> None:
    path = (folder / line.values["path"]).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.exists():
        raise MlflowException.invalid_parameter_value(f"{path} is no file in {folder}")
    client.log_artifact(run_id, str(path))


def _send_view(client: MlflowClient, run_id: str, _: Path, line: Line) -> None:
    experiment = client.get_experiment(client.get_run(run_id).info.experiment_id)
    if KIND_TAG not in experiment.tags:  # the experiment was made elsewhere; an existing tag is not changed
        client.set_experiment_tag(experiment.experiment_id, KIND_TAG, MODEL_TRAINING)
    value = tag_value(View(**line.values), run_id, line.time_ms)
    client.set_experiment_tag(experiment.experiment_id, tag_key(run_id), value)


def _key(name: str) -> str:
    """Replace characters that MLflow does not allow in a name."""
    return re.sub(r"[^\w\-. :/]", "_", name)
