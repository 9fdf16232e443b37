"""Run of a sweep with its outcome, read from its folder: its answers, and the questions that they answer."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llava_mini.config import load_values
from llava_mini.errors import UserError
from llava_mini.predictions import Predictions
from llava_mini.sweep.folder import Outcome, outcome, run_folder
from llava_mini.sweep.grid import Run
from llava_mini.sweep.statistics import Estimate
from llava_mini.tracking.spool import Spool

# Keys of result.json that a report needs, besides the answers.
_NEEDED = (
    "tokens", "prefill_flops", "seconds", "peak_memory_bytes", "steps", "start",
    "converged", "gained_last_third", "gain_noise", "gains",
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """Run with its outcome and scores: on the test split if it is finished, on validation without a test split."""

    run: Run
    folder: Path
    outcome: Outcome
    predictions: Predictions | None = None
    test_set: str = ""  # name of these questions; equal for runs that can be compared in pairs
    split: str = "test"  # or "validation"
    accuracy: Estimate | None = None  # share of exact matches, with an interval over scenes

    @property
    def result(self) -> dict[str, Any]:
        """Content of `result.json`; empty for a run that is not finished."""
        return self.outcome.result or {}

    @property
    def what_failed(self) -> str:
        """Error of a failed run, for people; a run that left a result is not run again while that file exists."""
        stays = (self.folder / "result.json").exists()
        return (self.outcome.error or "") + "; delete its folder to have it run again" * stays

    def row(self) -> dict[str, Any]:
        """Entry of the run in results.json; unknown values are None."""
        run, result, accuracy = self.run, self.result, self.accuracy
        tokens = result.get("tokens", None if run.C is None else run.C**2)
        low, high = (None, None) if accuracy is None or accuracy.interval is None else accuracy.interval
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
            "split": None if accuracy is None else self.split,
            "accuracy": None if accuracy is None else accuracy.value,
            "ci_low": low,
            "ci_high": high,
            "val_accuracy": result.get("accuracy", {}).get("val"),
            **self.scores,
            **{key: result.get(key) for key in ("converged", "gained_last_third", "gain_noise", "steps", "start")},
            "prefill_flops": result.get("prefill_flops"),
            "seconds": result.get("seconds"),
            "cpu_seconds": result.get("cpu_seconds"),
            "peak_memory_bytes": result.get("peak_memory_bytes"),
            "mlflow_run_id": result.get("mlflow_run_id") or Spool(self.folder).run_id(),
            "error": self.outcome.error,
        }

    @cached_property
    def scores(self) -> dict[str, dict[str, float] | None]:
        """Headline metrics by group of question kinds, and all scores by kind, on `split`."""
        answers = self.predictions
        return {
            "word_accuracy": None if answers is None else answers.group_means("word_accuracy"),
            "nll": None if answers is None else answers.group_means("nll"),
            "accuracy_by_kind": None if answers is None else answers.by_kind("exact_match"),
            "word_accuracy_by_kind": None if answers is None else answers.by_kind("word_accuracy"),
            "nll_by_kind": None if answers is None else answers.by_kind("nll"),
        }


def read_run(sweep_dir: Path, run: Run, code_version: str) -> Measured:
    """Read the state of a run, with its answers if it is finished; a run that cannot be read counts as failed."""
    folder = run_folder(sweep_dir, run, code_version)
    state = outcome(folder, run, code_version)
    if state.result is None:
        return Measured(run, folder, state)
    try:
        lacking = [key for key in _NEEDED if key not in state.result]
        if lacking:
            raise UserError(f"result.json lacks {', '.join(lacking)}")
        split, test_set = _test_set(folder / "config.yaml")
        predictions = Predictions.load(folder / f"predictions_{'test' if split == 'test' else 'val'}.npz")
        test_set += _questions(predictions)
        # Keys number the scenes of a world. In another world the same key is another scene.
        predictions = replace(predictions, key=np.char.add(test_set, predictions.key))
        return Measured(run, folder, state, predictions, test_set, split)
    except UserError as error:
        return Measured(run, folder, Outcome("failed", error=str(error)))


def _questions(answers: Predictions) -> str:
    """Name for the questions asked, so that data with other kinds under the same scene names is another test set."""
    asked = zip(answers.key, answers.turn, answers.kind, answers.words, strict=True)
    lines = sorted(f"{key}\t{turn}\t{kind}\t{words}\n" for key, turn, kind, words in asked)
    return f"{hashlib.sha256(''.join(lines).encode()).hexdigest()[:12]}/"


def _test_set(path: Path) -> tuple[str, str]:
    """Split that a run is compared on, and the part of its config that decides its questions.

    Where the data of a world with a seed is stored does not matter.

    Raises:
        UserError: if the config cannot be read.
    """
    try:
        data = load_values(path)["data"]
        name, split = data["test"], "test"
        if name is None:  # a sweep for choosing a configuration does not read the test split
            name, split = data["val"], "validation"
        if data["world_seed"] is None:
            return split, f"{data['folder']}/{name}/"
        return split, f"world_seed={data['world_seed']}/{name}={data['sizes'][name]}/"
    except (UserError, KeyError, TypeError) as error:
        raise UserError(f"{path.name} cannot be read ({type(error).__name__})") from error
