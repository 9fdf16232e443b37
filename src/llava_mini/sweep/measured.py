"""A run of a sweep and what came of it, read from its folder: its answers, and which questions they answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from llava_mini.config import load
from llava_mini.errors import UserError
from llava_mini.predictions import Predictions
from llava_mini.spool import Spool
from llava_mini.sweep.folder import Outcome, outcome, run_folder
from llava_mini.sweep.grid import Run
from llava_mini.sweep.statistics import Interval


@dataclass(frozen=True)
class Measured:
    """A run and what came of it.

    Attributes:
        run, folder, outcome: what was asked for, where, how it stands.
        predictions, accuracy: of the test split, when the run is finished; of validation for one without a test split.
        test_set: names these questions; equal for runs that can be compared in pairs.
        split: "test" or "validation".
    """

    run: Run
    folder: Path
    outcome: Outcome
    predictions: Predictions | None = None
    test_set: str = ""
    split: str = "test"
    accuracy: Interval | None = None

    def row(self) -> dict[str, Any]:
        """The run's entry in results.json; what is not known is None."""
        run, result = self.run, self.outcome.result or {}
        tokens = result.get("tokens", None if run.C is None else run.C**2)
        return {
            "run": self.folder.name,
            "status": self.outcome.state,
            "compressor": run.compressor,
            "C": run.C,
            "tokens": tokens,
            "n_fusion": run.n_fusion,
            "seed": run.seed,
            "reference": run.reference,
            "compressor.C": run.C,
            "fusion.num_layers": run.n_fusion,
            **run.values,
            "split": None if self.accuracy is None else self.split,
            "accuracy": None if self.accuracy is None else self.accuracy.value,
            "ci_low": None if self.accuracy is None else self.accuracy.low,
            "ci_high": None if self.accuracy is None else self.accuracy.high,
            "val_accuracy": result.get("accuracy", {}).get("val"),
            "prefill_flops": result.get("prefill_flops"),
            "seconds": result.get("seconds"),
            "cpu_seconds": result.get("cpu_seconds"),
            "peak_memory_bytes": result.get("peak_memory_bytes"),
            "mlflow_run_id": result.get("mlflow_run_id") or Spool(self.folder).run_id(),
            "error": self.outcome.error,
        }


def read_run(sweep_dir: Path, run: Run, code_version: str) -> Measured:
    """How a run stands, with its answers when it is finished; what cannot be read has failed."""
    folder = run_folder(sweep_dir, run, code_version)
    state = outcome(folder, run, code_version)
    if state.result is None:
        return Measured(run, folder, state)
    try:
        split, test_set = _test_set(folder / "config.yaml")
        predictions = Predictions.load(folder / f"predictions_{'test' if split == 'test' else 'val'}.npz")
        # Keys number the scenes of a world: in another one they stand for other scenes.
        predictions = replace(predictions, key=np.char.add(test_set, predictions.key))
        return Measured(run, folder, state, predictions, test_set, split)
    except UserError as error:
        return Measured(run, folder, Outcome("failed", error=str(error)))


def _test_set(path: Path) -> tuple[str, str]:
    """The split that a run is compared by, and what decides its questions, in a run's config; where data lie does not.

    Raises:
        UserError: when the config cannot be read.
    """
    try:
        data = load(path)["data"]
        name, split = data["splits"]["test"], "test"
        if name is None:  # a sweep for choosing leaves the test split unread
            name, split = data["splits"]["val"], "validation"
        if data["world_seed"] is None:
            return split, f"{data['folder']}/{name}/"
        return split, f"world_seed={data['world_seed']}/{name}={data['sizes'][name]}/"
    except (UserError, KeyError, TypeError) as error:
        raise UserError(f"{path.name} cannot be read ({type(error).__name__})") from error
