"""Analysis of a sweep: its runs, its configurations over seeds, and the effect of each single change.

Only finished runs with readable predictions count; the others are listed. Every configuration is compared with the
uncompressed reference of its own setting, and with configurations that differ from it in one value only. Both
comparisons use only the seeds for which the two configurations were tested on the same data.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from llava_mini.sweep.changes import Change, single_changes
from llava_mini.sweep.configurations import Configuration, configurations_of, reference_among, with_differences
from llava_mini.sweep.folder import State, Sweep, read_sweep
from llava_mini.sweep.measured import Measured, read_run
from llava_mini.sweep.statistics import FEWEST_SEEDS, Answers, Difference

_GROUPS = ("dense", "one_word")


@dataclass(frozen=True)
class Analysis:
    """All data that the report shows.

    Attributes:
        sweep: The sweep as it was requested.
        runs: All runs, finished or not, in the order requested.
        configurations: Configurations of the finished runs; see `configurations_of`.
        changes: Effects of single changes; see `Change`.
        groups: Groups of question kinds, "dense" before "one_word"; see `Predictions.groups`.
        kinds: Kinds of questions, group by group.
        questions, scenes: Number of questions and of scenes in the test split; those of the first run if runs differ.
        split: "test", or "validation" for a sweep without a test split; that of the first run if runs differ.
        test_sets: Number of different test sets that the runs were tested on. Runs of different ones are not compared.
    """

    sweep: Sweep
    runs: list[Measured]
    configurations: list[Configuration] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    questions: int = 0
    scenes: int = 0
    test_sets: int = 0
    split: str = "test"

    def of_state(self, state: State) -> list[Measured]:
        """Runs in one state: finished, failed or interrupted."""
        return [measured for measured in self.runs if measured.outcome.state == state]

    def reference_of(self, configuration: Configuration) -> Configuration | None:
        """Finished reference of the configuration's setting, or None."""
        return reference_among(configuration.setting, self.configurations)

    @property
    def common_seeds(self) -> int:
        """Largest number of seeds that two configurations have in common, or that one has if none are compared."""
        changes = [difference for change in self.changes for difference in change.differences.values()]
        compared = [len(difference.by_seed) for difference in [*self.to_reference(), *changes]]
        return max(compared or [len(configuration.columns) for configuration in self.configurations], default=0)

    @property
    def conclusive(self) -> bool:
        """Whether there are enough seeds to draw conclusions about differences."""
        return self.common_seeds >= FEWEST_SEEDS

    def to_reference(self, group: str | None = None) -> list[Difference]:
        """All differences to a reference, in one group of question kinds or (None) in all groups."""
        scores = [c.scores[name] for c in self.configurations for name in c.scores if group in (None, name)]
        return [score.difference for score in scores if score.difference is not None]

    def not_compared(self) -> str:
        """Sentence on what is not compared because its test questions differ; empty if everything is compared."""
        if self.test_sets < 2:
            return ""
        text = f"The runs were tested on {self.test_sets} different test sets; "
        if self.to_reference() or self.changes:
            return text + "only runs of the same one are compared with each other."
        return text + "no two configurations share one and a seed, so nothing is compared."


def analyze(sweep_dir: Path) -> Analysis:
    """Read and analyze the folder of a sweep.

    Raises:
        UserError: if the folder is not a sweep's folder.
    """
    sweep = read_sweep(sweep_dir)
    runs = [read_run(sweep_dir, run, sweep.code_version) for run in sweep.runs]
    predictions = {index: measured.predictions for index, measured in enumerate(runs) if measured.predictions}
    if not predictions:
        return Analysis(sweep, runs)
    test = list(predictions.values())
    answers = Answers(test)
    exact = answers.scores("exact_match")
    for column, index in enumerate(predictions):
        runs[index] = replace(runs[index], accuracy=exact.run(column))
    of_group = {group: [run.groups().get(group, []) for run in test] for group in _GROUPS}
    groups = {group: answers.scores("word_accuracy", kinds) for group, kinds in of_group.items() if any(kinds)}
    named = (kind for group in groups for own in of_group[group] for kind in sorted(own))
    kinds = [kind for kind in dict.fromkeys(named) if kind]  # data without kinds names an empty one
    asked = {kind: [[kind] if kind in run.kind else [] for run in test] for kind in kinds}
    by_kind = {kind: answers.scores("word_accuracy", own) for kind, own in asked.items()}
    finished = [runs[index] for index in predictions]
    made = with_differences(configurations_of(finished, sweep, groups, by_kind), groups)
    changes = single_changes(made, groups)
    test_sets, split = len({measured.test_set for measured in finished}), finished[0].split
    scenes = len(np.unique(test[0].key))
    return Analysis(
        sweep, runs, made, changes, list(groups), kinds, len(test[0].key), scenes, test_sets, split
    )  # fmt: skip
