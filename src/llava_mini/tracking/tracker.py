"""Reporting to a service, MLflow by default, that can neither end nor slow a run.

A `Tracker` only writes lines into the spool of its run's folder, and a background thread sends them. Lines that could
not be sent (the service is down, the run was killed) wait there for `flush_spools`. A line that is sent twice is stored
once: lines carry their time, and MLflow stores one metric per time, step and value. A file is reported as a line that
names it, and is read when it is sent.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from llava_mini.tracking.mlflow import MLflow
from llava_mini.tracking.saved_view import View
from llava_mini.tracking.service import Service, short
from llava_mini.tracking.spool import LANES, DataInput, Lane, Origin, Spool, Status

log = logging.getLogger("llava_mini.tracking.tracker")

EXPERIMENT = "llava-mini"
_WAITS = {"reports": "is not available; values wait in", "extras": "does not take inputs, files or views; they wait in"}


def init_tracking(uri: str | None = None, experiment: str = EXPERIMENT, service: Service | None = None) -> str:
    """Prepare the service, MLflow by default, so that any number of runs can then start at once; return its address.

    A service that is down is a warning, never an exception.
    """
    service = service or MLflow()
    address = service.address(uri)
    try:
        service.prepare(address, experiment)
    except Exception as error:  # noqa: BLE001  whatever a service raises, work continues without it
        text = "%s at %s is not available; values are spooled and sent later (%s)"
        log.warning(text, service.name, address, short(error))
    return address


def flush_spools(
    folders: Iterable[Path],
    uri: str | None = None,
    parent_run_id: str | None = None,
    lanes: Sequence[Lane] = LANES,
    service: Service | None = None,
) -> int:
    """Send what earlier runs could not send, and return how many lines still wait.

    It stops at the first failure and never raises. Folders without a spool are skipped. Without `uri` a run's lines go
    to the address that it has recorded. `parent_run_id` is for runs that were started when no parent could be created.
    `lanes` are those of `Spool.deliver`; "extras" take long if they are models.
    """
    spools, service = [spool for spool in map(Spool, folders) if spool.pending()], service or MLflow()
    for lane in lanes:
        if not all(_deliver(service, spool, lane, uri=uri, parent_run_id=parent_run_id) for spool in spools):
            break
    return sum(spool.pending(*lanes) for spool in spools)


class Tracker:
    """One run in a service, reported through the spool in `folder`. No method raises or waits because of the service.

    The folder gives the run its name; an existing spool continues its run. `interval` is the time in seconds between
    two attempts to send; it grows to a minute while the service is down.
    """

    def __init__(
        self,
        folder: Path,
        *,
        uri: str | None = None,
        experiment: str = EXPERIMENT,
        parent_run_id: str | None = None,
        interval: float = 2.0,
        service: Service | None = None,
    ) -> None:
        self.name = Path(folder).name
        self._spool = Spool(folder)
        self.service = service or MLflow()
        self._spool.create(Origin(self.service.address(uri), experiment, self.name, parent_run_id))
        self._spool.append("status", {"status": "RUNNING"})
        self._interval = interval
        self._stop = threading.Event()
        self._first_attempt = threading.Event()
        self._thread = threading.Thread(target=self._deliver_until_stopped, name="tracker", daemon=True)
        self._thread.start()

    def run_id(self, wait: float = 0.0) -> str | None:
        """Return the run's id in the service, after at most `wait` seconds for the first attempt; None: not created."""
        self._first_attempt.wait(wait)
        return self._spool.run_id()

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log a nested config as flat `a.b.c` parameters."""
        self._spool.append("params", flatten(params))

    def log_metrics(self, metrics: Mapping[str, Any], step: int = 0) -> None:
        """Log numbers. The keys of a nested mapping become `a.b`."""
        self._spool.append("metrics", {key: float(value) for key, value in flatten(metrics).items()}, step)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags, replacing earlier ones of the same name."""
        self._spool.append("tags", flatten(tags))

    def log_inputs(self, inputs: Sequence[DataInput]) -> None:
        """Log the data sets that the run reads."""
        self._spool.append("inputs", {"datasets": [asdict(each) for each in inputs]})

    def log_file(self, path: str) -> None:
        """Log a file, or a folder with all its contents, by its path in the spool's folder, which it stays in."""
        self._spool.append("file", {"path": path})

    def show(self, view: View) -> None:
        """Set up how MLflow's pages show the child runs of this run."""
        self._spool.append("view", asdict(view))

    def finish(self, status: Status = "FINISHED", wait: float = 10.0) -> int:
        """Close the run, and return how many lines still wait in the spool after at most `wait` seconds."""
        self._spool.append("status", {"status": status})
        self._stop.set()
        self._thread.join(wait)
        return self._spool.pending()

    def _deliver_until_stopped(self) -> None:
        pause, up = self._interval, True
        while True:
            stopping = self._stop.is_set()
            level = logging.WARNING if up else logging.DEBUG  # one warning per outage
            up = all(_deliver(self.service, self._spool, lane, level) for lane in LANES)
            self._first_attempt.set()
            if stopping:
                return
            pause = self._interval if up else min(2 * pause, 60.0)
            self._stop.wait(pause)


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a nested mapping: `{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat


def _deliver(
    service: Service,
    spool: Spool,
    lane: Lane,
    log_level: int = logging.WARNING,
    *,
    uri: str | None = None,
    parent_run_id: str | None = None,
) -> bool:
    """Send the unsent lines to their recorded address, or to `uri` if given. Return False if that fails."""
    try:
        if uri is not None or parent_run_id is not None:
            spool.redirect(None if uri is None else service.address(uri), parent_run_id)
        if spool.pending(lane):
            spool.deliver(lane, service.create_run, partial(service.send, spool.folder))
    except BlockingIOError:
        log.debug("%s is being sent by another process", spool.journal)
    except Exception as error:  # noqa: BLE001  whatever a service raises, work continues without it
        log.log(log_level, "%s %s %s (%s)", service.name, _WAITS[lane], spool.journal, short(error))
        return False
    return True
