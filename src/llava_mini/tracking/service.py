"""A service that runs are reported to, such as MLflow. Another one is a class with these methods, named by a yaml."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from llava_mini.tracking.spool import Line, Origin


class Service(ABC):
    """Takes the reports of runs.

    A `Tracker` calls it from a thread of its own, and again later if a call raises an error of any kind: so a service
    may be slow or absent. A call that failed may still have arrived, so each may be repeated without harm. One is made
    before a run, to find out what is missing, and one for the run: so its constructor only checks.

    Attributes:
        name: Name for messages.
    """

    name: ClassVar[str]

    @abstractmethod
    def address(self, uri: str | None) -> str:
        """Return the address in use: `uri` (config key tracking.uri), or the service's default; no relative path."""

    def prepare(self, address: str, experiment: str) -> None:  # noqa: B027 - most services need nothing
        """Prepare for any number of runs that begin at once, for example by making a database."""

    @abstractmethod
    def create_run(self, origin: Origin) -> str:
        """Return the id of a run, made if the service has none of `origin.token` yet."""

    @abstractmethod
    def send(self, folder: Path, origin: Origin, lines: list[Line]) -> None:
        """Send lines to the run `origin.run_id`; what the service has no place for is ignored.

        Args:
            folder: Folder of the run, which contains the files that lines name.
            origin: Address, experiment, name and id of the run, and the id of its parent.
            lines: At most 100 lines of params, metrics and tags, or one of another kind: status {"status"}, inputs
                {"datasets"}, file {"path"}, view (MLflow's charts). Values of params, metrics and tags are flat.
        """


def short(error: Exception) -> str:
    """Return an exception as one line of at most 300 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
