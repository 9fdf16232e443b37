"""What a sweep shows: its runs, the configurations they repeat over seeds, and what each single change brings.

Only finished runs whose predictions can be read count; the others are named. Every configuration is compared with the
uncompressed reference of its own setting, and with those that differ from it in one value only; both only over seeds
for which the two were tested on the same data.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from llava_mini.sweep.changes import Change, single_changes
from llava_mini.sweep.configurations import Configuration, configurations_of, reference_among, with_differences
from llava_mini.sweep.folder import State, Sweep, read_sweep
from llava_mini.sweep.measured import Measured, read_run
from llava_mini.sweep.statistics import Bootstrap


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
        return reference_among(configuration.setting, self.configurations)

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
    runs = [read_run(sweep_dir, run, sweep.code_version) for run in sweep.runs]
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
    made = with_differences(configurations_of(finished, sweep, bootstrap, by_kind), bootstrap)
    changes = [] if len(made) < 2 else list(single_changes(made, bootstrap))
    test_sets, split = len({measured.test_set for measured in finished}), finished[0].split
    scenes = len(np.unique(test[0].key))
    return Analysis(sweep, runs, made, changes, kinds, len(test[0].key), scenes, test_sets, split)
