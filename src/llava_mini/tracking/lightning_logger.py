"""Lightning logger on top of a `Tracker`: what the stages log with `self.log` becomes lines in the run's spool.

It is separate from `tracking.py` because importing Lightning takes seconds that a sweep does not need to spend.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from llava_mini.tracking.tracker import Tracker


class TrackerLogger(Logger):
    """Logger that passes metrics and hyperparameters to a tracker.

    The tracker's owner finishes it, because a run is more than one call of fit.
    """

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
        """Log hyperparameters as flat parameters."""
        self._tracker.log_params(vars(params) if isinstance(params, Namespace) else params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics, without Lightning's own counter `epoch`.

        Args:
            metrics: Values by name.
            step: Index from 0 of the last step done. Reported is the number of steps done, as validation files have it.
        """
        values = {key: value for key, value in metrics.items() if key != "epoch"}
        self._tracker.log_metrics(values, 0 if step is None else step + 1)
