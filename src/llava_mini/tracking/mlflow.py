"""MLflow as the service that runs are reported to; imported at its first use, because that takes seconds."""

from __future__ import annotations

import logging
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from llava_mini.errors import UserError
from llava_mini.tracking.saved_view import charts_address, runs_address
from llava_mini.tracking.service import Service, short
from llava_mini.tracking.spool import Line, Origin

log = logging.getLogger("llava_mini.tracking.tracker")

DEFAULT_URI = "sqlite:///mlruns/mlflow.db"


class MLflow(Service):
    """MLflow, at an SQLite file or a server."""

    name: ClassVar[str] = "MLflow"

    def __init__(self) -> None:
        check_installed("tracker=mlflow", "tracking.enabled=false")

    def address(self, uri: str | None) -> str:
        """Return `uri`, else MLFLOW_TRACKING_URI, else the default. A relative SQLite path is made absolute."""
        chosen = uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
        path = sqlite_path(chosen)
        return chosen if path is None else f"sqlite:///{path.absolute()}"

    def prepare(self, address: str, experiment: str) -> None:
        """Create the database and the experiment."""
        from llava_mini.tracking import mlflow_calls

        mlflow_calls.experiment_id(address, mlflow_calls.connect(address), experiment)

    def create_run(self, origin: Origin) -> str:
        """Return the id of a spool's MLflow run, created if missing."""
        from llava_mini.tracking.mlflow_calls import find_or_create_run

        return find_or_create_run(origin)

    def send(self, folder: Path, origin: Origin, lines: list[Line]) -> None:
        """Send lines; what MLflow rejects for good is dropped with a warning."""
        from llava_mini.tracking.mlflow_calls import send

        send(folder, origin, lines)


def check_installed(key: str, otherwise: str) -> None:
    """Check that MLflow is installed, without the seconds that importing it takes.

    The message names the option (`key`) that needs it, and how to work without it (`otherwise`).

    Raises:
        UserError: MLflow is not installed.
    """
    if find_spec("mlflow") is None:
        raise UserError(f"{key}: mlflow is not installed: pip install mlflow; or {otherwise}", key=key, hint=otherwise)


def sqlite_path(uri: str) -> Path | None:
    """Return the file of an SQLite tracker; None for any other tracker."""
    match = re.fullmatch(r"sqlite:///([^?:]+)", uri)
    return None if match is None else Path(match[1])


def latest_sweep(uri: str, server: str) -> list[str]:
    """Return the URLs on `server` of the newest sweep's charts and of all runs of its experiment.

    The list is empty if there is no sweep, or if the tracker is down, which is a warning.
    """
    from llava_mini.tracking.mlflow_calls import latest_view

    try:
        found = latest_view(uri)
    except Exception as error:  # noqa: BLE001  whatever a tracker raises
        log.warning("MLflow at %s is not available (%s)", uri, short(error))
        return []
    return [] if found is None else [charts_address(server, *found), runs_address(server, found[0])]
