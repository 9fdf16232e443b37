"""What a sweep shows: its runs, the configurations they repeat over seeds, and what each single change brings.

Only finished runs whose predictions can be read count; the others are named. Every configuration is compared with the
uncompressed reference of its own setting, and with those that differ from it in one value only; both only over seeds
for which the two were tested on the same data.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from yaml import YAMLError

from llava_mini.config import load
from llava_mini.errors import UserError
from llava_mini.predictions import Predictions
from llava_mini.spool import Spool
from llava_mini.sweep.folder import Outcome, State, Sweep, outcome, read_sweep, run_folder
from llava_mini.sweep.grid import Run
from llava_mini.sweep.statistics import Bootstrap, Difference, Interval


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


@dataclass(frozen=True)
class Configuration:
    """Runs that differ in their seed only.

    Attributes:
        compressor, C, n_fusion, values, reference: as of its runs.
        setting: the values that it shares with its reference.
        tokens: compressed tokens of a frame.
        wanted: the seeds that were asked for.
        columns: for every finished seed the run's column in the bootstrap.
        test_sets: for every finished seed what the run was tested on.
        accuracy: mean over seeds.
        by_seed: accuracy of each seed.
        by_kind: mean over seeds for each kind of question.
        difference: accuracy less the reference's, over common seeds; None for the reference or without one.
        prefill_flops, seconds: means over seeds.
        peak_memory_bytes: the largest.
    """

    compressor: str
    C: int | None
    n_fusion: int
    values: dict[str, Any]
    reference: bool
    setting: dict[str, Any]
    tokens: int
    wanted: list[int]
    columns: dict[int, int]
    test_sets: dict[int, str]
    accuracy: Interval
    by_seed: dict[int, float]
    by_kind: dict[str, Interval]
    difference: Difference | None
    prefill_flops: float
    seconds: float
    peak_memory_bytes: int

    @property
    def label(self) -> str:
        """`query C=2, N=4, max_steps=10`."""
        return _label(self.attributes())

    @property
    def series(self) -> str:
        """The label without C: configurations of one series are joined in the plots."""
        return _label({**self.attributes(), "C": None})

    def less(self, other: Configuration, bootstrap: Bootstrap) -> Difference | None:
        """Accuracy less another's over common seeds of one test set; None without any."""
        same = {seed: column for seed, column in self.columns.items() if self._shares(seed, other)}
        return bootstrap.difference(same, other.columns)

    def _shares(self, seed: int, other: Configuration) -> bool:
        return self.test_sets[seed] == other.test_sets.get(seed)

    def attributes(self) -> dict[str, Any]:
        """All that distinguishes it from the others of its sweep."""
        return {"compressor": self.compressor, "C": self.C, "N": self.n_fusion, **self.values}


@dataclass(frozen=True)
class Change:
    """The effect of changing one value: `key` from `before` to `after`, all else as in `at`."""

    key: str
    before: str
    after: str
    at: str
    difference: Difference


@dataclass(frozen=True)
class Analysis:
    """All that the report shows.

    Attributes:
        sweep: what was asked for.
        runs: every run, finished or not, in the order asked for.
        configurations: the most accurate first.
        changes: see `Change`.
        kinds: of questions.
        questions, scenes: how many the test split has; of the first run where runs differ in that.
        split: "test", or "validation" for a sweep without a test split; of the first run where runs differ in that.
        test_sets: how many different ones the runs were tested on; runs of different ones are not compared.
    """

    sweep: Sweep
    runs: list[Measured]
    configurations: list[Configuration] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    questions: int = 0
    scenes: int = 0
    test_sets: int = 0
    split: str = "test"

    def of_state(self, state: State) -> list[Measured]:
        """The runs that are finished, failed or interrupted."""
        return [measured for measured in self.runs if measured.outcome.state == state]

    def reference_of(self, configuration: Configuration) -> Configuration | None:
        """The reference of the same setting, if it is finished."""
        return _reference(configuration.setting, self.configurations)

    def not_compared(self) -> str:
        """One sentence on what is not compared because it was tested on other questions; empty when all is."""
        if self.test_sets < 2:
            return ""
        text = f"The runs were tested on {self.test_sets} different test sets; "
        if self.changes or any(configuration.difference for configuration in self.configurations):
            return text + "only runs of the same one are compared with each other."
        return text + "no two configurations share one and a seed, so nothing is compared."


def analyse(sweep_dir: Path) -> Analysis:
    """Reads the folder of a sweep.

    Raises:
        UserError: when it is none.
    """
    sweep = read_sweep(sweep_dir)
    runs = [_read(sweep_dir, run, sweep.code_version) for run in sweep.runs]
    predictions = {index: measured.predictions for index, measured in enumerate(runs) if measured.predictions}
    if not predictions:
        return Analysis(sweep, runs)
    test = list(predictions.values())
    bootstrap = Bootstrap(test)
    for column, index in enumerate(predictions):
        runs[index] = replace(runs[index], accuracy=bootstrap.run(column))
    kinds = sorted(set.intersection(*({str(kind) for kind in run.kind} for run in test)))
    by_kind = {kind: Bootstrap([run.of_kind(kind) for run in test]) for kind in kinds}
    finished = [runs[index] for index in predictions]
    made = _with_differences(_configurations(finished, sweep, bootstrap, by_kind), bootstrap)
    changes = [] if len(made) < 2 else list(_changes(made, bootstrap))
    test_sets, split = len({measured.test_set for measured in finished}), finished[0].split
    scenes = len(np.unique(test[0].key))
    return Analysis(sweep, runs, made, changes, kinds, len(test[0].key), scenes, test_sets, split)


def _read(sweep_dir: Path, run: Run, code_version: str) -> Measured:
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
    except (UserError, YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{path.name} cannot be read ({type(error).__name__})") from error


def _identity(run: Run) -> str:
    """What runs of one configuration have in common."""
    return repr((run.reference, run.compressor, run.C, run.n_fusion, run.values))


def _configurations(
    finished: Sequence[Measured], sweep: Sweep, bootstrap: Bootstrap, by_kind: Mapping[str, Bootstrap]
) -> list[Configuration]:
    """One for each group of runs, the most accurate first; differences are not known yet."""
    wanted, columns = defaultdict[str, list[int]](list), defaultdict[str, dict[int, int]](dict)
    for run in sweep.runs:
        wanted[_identity(run)].append(run.seed)
    for column, measured in enumerate(finished):
        columns[_identity(measured.run)][measured.run.seed] = column
    made = []
    for identity, by_seed in columns.items():
        group = [finished[column] for column in by_seed.values()]
        run, results = group[0].run, [measured.outcome.result or {} for measured in group]
        made.append(
            Configuration(
                run.compressor,
                run.C,
                run.n_fusion,
                run.values,
                run.reference,
                setting=run.setting(),
                tokens=results[0]["tokens"],
                wanted=wanted[identity],
                columns=by_seed,
                test_sets={seed: finished[column].test_set for seed, column in by_seed.items()},
                accuracy=bootstrap.mean(by_seed),
                by_seed={seed: bootstrap.run(column).value for seed, column in by_seed.items()},
                by_kind={kind: of_kind.mean(by_seed) for kind, of_kind in by_kind.items()},
                difference=None,
                prefill_flops=fmean(result["prefill_flops"] for result in results),
                seconds=fmean(result["seconds"] for result in results),
                peak_memory_bytes=max(result["peak_memory_bytes"] for result in results),
            )
        )
    return sorted(made, key=lambda configuration: -configuration.accuracy.value)


def _with_differences(configurations: list[Configuration], bootstrap: Bootstrap) -> list[Configuration]:
    """The same, each compared with its reference."""
    compared = []
    for configuration in configurations:
        reference = _reference(configuration.setting, configurations)
        if reference is not None and reference is not configuration:
            configuration = replace(configuration, difference=configuration.less(reference, bootstrap))
        compared.append(configuration)
    return compared


def _reference(setting: dict[str, Any], configurations: Sequence[Configuration]) -> Configuration | None:
    return next((c for c in configurations if c.reference and c.setting == setting), None)


def _changes(configurations: Sequence[Configuration], bootstrap: Bootstrap) -> Iterator[Change]:
    """All pairs that differ in one value: neighbouring ones of numbers, any two of names."""
    for key in configurations[0].attributes():
        groups = defaultdict[str, list[Configuration]](list)
        for configuration in configurations:
            rest = {name: value for name, value in configuration.attributes().items() if name != key}
            groups[_label(rest)].append(configuration)
        for at, group in sorted(groups.items()):
            nothing = [c for c in configurations if key == "C" and _passes_nothing_on(c, group[0])]
            for before, after in _pairs(key, group, nothing):
                difference = after.less(before, bootstrap)
                if difference is not None:
                    yield Change(key, _shown(before, key), _shown(after, key), at, difference)


def _passes_nothing_on(configuration: Configuration, other: Configuration) -> bool:
    """Whether it is the control without tokens that stands before C = 1 of another compressor."""
    same = {"compressor": None, "C": None}
    return (
        configuration.tokens == 0
        and other.C is not None
        and {**configuration.attributes(), **same} == {**other.attributes(), **same}
    )


def _pairs(
    key: str, group: Sequence[Configuration], first: Sequence[Configuration]
) -> Iterable[tuple[Configuration, Configuration]]:
    known = [c for c in group if c.attributes()[key] is not None]
    if all(isinstance(c.attributes()[key], int | float) for c in known):
        return pairwise([*first, *sorted(known, key=lambda c: c.attributes()[key])])
    return combinations(sorted(known, key=lambda c: str(c.attributes()[key])), 2)


def _shown(configuration: Configuration, key: str) -> str:
    value = configuration.attributes()[key]
    return f"0 ({configuration.compressor})" if value is None else str(value)


def _label(attributes: Mapping[str, Any]) -> str:
    """`{"compressor": "query", "C": 2, "N": 4, "trainer.max_steps": 9}` -> `query C=2, N=4, max_steps=9`."""
    named = [
        f"{key.rpartition('.')[2]}={value}"
        for key, value in attributes.items()
        if key != "compressor" and value is not None
    ]
    return " ".join([*([attributes["compressor"]] if "compressor" in attributes else []), ", ".join(named)]).strip()
