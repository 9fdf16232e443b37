"""Lightning's view of a `Tracker`: what the stages say with `self.log` becomes lines of the run's spool.

Apart from `tracking.py` because importing Lightning takes seconds that a sweep does not have to spend.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from llava_mini.tracking import Tracker


class TrackerLogger(Logger):
    """Passes metrics and hyper-parameters on; the tracker's owner finishes it, since a run is more than a fit."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__()
        self._tracker = tracker

    @property
    def name(self) -> str:
        """The run's name."""
        return self._tracker.name

    @property
    def version(self) -> str | None:
        """The MLflow run's id, once there is one."""
        return self._tracker.run_id()

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Logs hyper-parameters as flat parameters."""
        self._tracker.log_params(vars(params) if isinstance(params, Namespace) else params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs metrics at a step; Lightning's own counter `epoch` is left out."""
        self._tracker.log_metrics({key: value for key, value in metrics.items() if key != "epoch"}, step or 0)
