"""Saved view of a sweep's runs for MLflow's web pages: which runs, which columns, and charts of metric against metric.

MLflow draws such charts only after a user has set them up by hand. But what its pages call a saved view is a tag of the
experiment, and a URL that names the view opens it. So the tag is written here. Its content is internal to MLflow and
may change: the pages of MLflow 3.10 read the state at the top of the JSON, those of 3.17 read the one in `state`. Where
neither is understood, the URL shows the same page with MLflow's own charts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

KIND_TAG = "mlflow.experimentKind"
MODEL_TRAINING = "custom_model_development"  # else MLflow shows an experiment's pages for language model apps
_TAG = "mlflow.sharedViewState."
_OWN = "llava-mini."  # views that users save have no such key


@dataclass(frozen=True)
class View:
    """What MLflow shows of the child runs of a parent run."""

    name: str
    charts: Sequence[Sequence[str]]  # metrics of each: along x, along y
    params: Sequence[str]  # columns of the table, left to right
    metrics: Sequence[str]  # columns after those of `params`
    order_by: str  # metric by which the runs are sorted, smallest first


def tag_key(parent_run_id: str) -> str:
    """Return the key of the experiment tag that stores the view of a parent's runs."""
    return f"{_TAG}{_OWN}{parent_run_id}"


def parent_of(tag: str) -> str | None:
    """Return the parent run's id from the key of a view's tag; None for any other tag."""
    prefix = tag_key("")
    return tag.removeprefix(prefix) if tag.startswith(prefix) else None


def tag_value(view: View, parent_run_id: str, time_ms: int) -> str:
    """Return the view of a parent's runs as JSON; `time_ms`, since 1970, is when it was created."""
    state = {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{parent_run_id}'",
        "orderByKey": f"metrics.`{view.order_by}`",  # when sorted by start time, MLflow would show the parent too
        "orderByAsc": True,
        "runsHiddenMode": "SHOW_ALL",  # else only the first ten are shown
        "selectedColumns": [
            *(f"attributes.`{name}`" for name in ("Source", "Dataset")),
            *(f"params.`{name}`" for name in view.params),
            *(f"metrics.`{name}`" for name in view.metrics),
        ],
    }
    if view.charts:
        section = {"uuid": "sweep", "name": view.name, "display": True, "isReordered": True, "columns": 2}
        state |= {"compareRunSections": [section], "compareRunCharts": list(map(_scatter, view.charts))}
    content = {**state, "name": view.name, "createdAt": time_ms, "state": json.dumps(state)}
    return json.dumps(content, separators=(",", ":"))


def _scatter(axes: Sequence[str]) -> dict[str, object]:
    x, y = ({"key": key, "type": "METRIC"} for key in axes)
    name = f"{axes[0]}-{axes[1]}"
    return {"uuid": name, "type": "SCATTER", "metricSectionId": "sweep", "runsCountToCompare": 100,
            "xaxis": x, "yaxis": y}  # fmt: skip


def charts_address(server: str, experiment_id: str, parent_run_id: str) -> str:
    """Return the URL of the charts of a parent's runs."""
    query = {"viewStateShareKey": f"{_OWN}{parent_run_id}", "compareRunsMode": "CHART"}
    return f"{runs_address(server, experiment_id)}&{urlencode(query)}"


def runs_address(server: str, experiment_id: str) -> str:
    """Return the URL of all runs of an experiment, on the pages for model training."""
    return f"{server}/#/experiments/{experiment_id}/runs?workflowType=machine_learning"


def created_ms(value: str) -> int:
    """Return when a view was created, in milliseconds since 1970."""
    return int(json.loads(value)["createdAt"])
