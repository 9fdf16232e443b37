"""A view of a sweep's runs for MLflow's pages: which runs, which columns, and charts of one figure against another.

MLflow draws such charts only where somebody has set them up by hand. What its pages call a saved view is a tag of the
experiment, though, and an address that names the view opens it; so the tag is written here. Its content is MLflow's own
business and may change: the pages of MLflow 3.10 read the state at the top of the JSON, those of 3.17 the one in
`state`. Where neither is understood, the address shows the same page with MLflow's own charts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

KIND_TAG = "mlflow.experimentKind"
MODEL_TRAINING = "custom_model_development"  # else the pages of an experiment are those for language model apps
_TAG = "mlflow.sharedViewState."
_OWN = "llava-mini."  # people's own views have no such key


@dataclass(frozen=True)
class View:
    """What is shown of the runs under a parent.

    Attributes:
        name: the view's name.
        charts: the metrics of each chart, first along x, then along y.
        params, metrics: columns of the table, left to right.
        order_by: the metric by which runs are sorted, the smallest first.
    """

    name: str
    charts: Sequence[Sequence[str]]
    params: Sequence[str]
    metrics: Sequence[str]
    order_by: str


def tag_key(parent_run_id: str) -> str:
    """The experiment tag that holds the view of a parent's runs."""
    return f"{_TAG}{_OWN}{parent_run_id}"


def parent_of(tag: str) -> str | None:
    """The parent of whose runs a tag holds the view; None for any other tag."""
    prefix = tag_key("")
    return tag.removeprefix(prefix) if tag.startswith(prefix) else None


def tag_value(view: View, parent_run_id: str, time_ms: int) -> str:
    """The view in JSON.

    Args:
        view: what is shown.
        parent_run_id: of the runs that are shown.
        time_ms: when it was made, milliseconds since 1970.
    """
    state = {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{parent_run_id}'",
        "orderByKey": f"metrics.`{view.order_by}`",  # by the time of the start MLflow would show the parent too
        "orderByAsc": True,
        "runsHiddenMode": "SHOW_ALL",  # else the first ten
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
    """Where a browser finds the charts of a parent's runs."""
    query = {"viewStateShareKey": f"{_OWN}{parent_run_id}", "compareRunsMode": "CHART"}
    return f"{runs_address(server, experiment_id)}&{urlencode(query)}"


def runs_address(server: str, experiment_id: str) -> str:
    """Where a browser finds all runs of an experiment, on the pages for model training."""
    return f"{server}/#/experiments/{experiment_id}/runs?workflowType=machine_learning"


def created_ms(value: str) -> int:
    """When a view was made, milliseconds since 1970."""
    return int(json.loads(value)["createdAt"])
