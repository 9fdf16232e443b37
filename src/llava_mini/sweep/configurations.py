"""Configurations: groups of runs that differ only in their seed, compared with the reference of their setting."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from llava_mini.sweep.folder import Sweep
from llava_mini.sweep.grid import Run
from llava_mini.sweep.measured import Measured
from llava_mini.sweep.statistics import Difference, Estimate, Scores, corrected
from llava_mini.sweep.training import Training


@dataclass(frozen=True)
class Score:
    """Word accuracy on one group of question kinds."""

    mean: Estimate  # over seeds
    by_seed: dict[int, float]
    difference: Difference | None = None  # to the reference, over common seeds of one test set; None without one


@dataclass(frozen=True)
class Configuration:
    """Group of runs that differ only in their seed.

    Attributes:
        compressor, C, n_fusion, values, reference: Values that its runs share; see `grid.Run`.
        setting: Varied values that the configuration shares with its reference.
        tokens: Number of compressed tokens of a frame.
        wanted: Seeds that were requested.
        columns: Column in the scores of the run of each finished seed.
        test_sets: Test set of the run of each finished seed.
        scores: Headline metrics, by group of question kinds.
        by_kind: Word accuracy of each kind of question, mean over seeds.
        exact_by_kind, nll_by_kind: Exact match and nats per word of each kind of question, mean over seeds.
        training: Training length and convergence of its runs.
        prefill_flops, seconds: Prefill FLOPs and seconds of a run, mean over seeds.
        peak_memory_bytes: Largest peak memory of its runs.
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
    scores: dict[str, Score]
    by_kind: dict[str, Estimate]
    exact_by_kind: dict[str, float]
    nll_by_kind: dict[str, float]
    training: Training
    prefill_flops: float
    seconds: float
    peak_memory_bytes: int

    @property
    def label(self) -> str:
        """Label of the configuration, such as `query C=2, N=4, max_steps=10`."""
        return label_of(self.attributes())

    @property
    def series(self) -> str:
        """Label without C. Configurations of one series are joined in the plots."""
        return label_of({**self.attributes(), "C": None})

    def less(self, other: Configuration, scores: Scores) -> Difference | None:
        """Score minus the score of `other`, over common seeds of one test set; None if there are none."""
        same = [seed for seed, test_set in self.test_sets.items() if other.test_sets.get(seed) == test_set]
        ours = {seed: self.columns[seed] for seed in same}
        return scores.difference(_known(ours, scores), _known(other.columns, scores))

    def attributes(self) -> dict[str, Any]:
        """All values that distinguish the configuration from the others of its sweep."""
        return {"compressor": self.compressor, "C": self.C, "N": self.n_fusion, **self.values}


def configurations_of(
    finished: Sequence[Measured], sweep: Sweep, groups: Mapping[str, Scores], by_kind: Mapping[str, Scores]
) -> list[Configuration]:
    """Group finished runs into configurations, settings in the order requested, the reference first.

    Differences are not computed yet. The order does not rank configurations: after the reference they are sorted by
    number of pre-fusion layers and tokens.
    """
    wanted, columns = defaultdict[str, list[int]](list), defaultdict[str, dict[int, int]](dict)
    for run in sweep.runs:
        wanted[_identity(run)].append(run.seed)
    for column, measured in enumerate(finished):
        columns[_identity(measured.run)][measured.run.seed] = column
    made = [
        _configuration({seed: finished[column] for seed, column in own.items()}, own, wanted[identity], groups, by_kind)
        for identity, own in columns.items()
    ]
    settings = [run.setting() for run in sweep.runs]
    return sorted(
        made,
        key=lambda c: (settings.index(c.setting), not c.reference, c.n_fusion, c.tokens > 0, c.compressor, c.tokens),
    )


def _configuration(
    runs: Mapping[int, Measured],
    columns: dict[int, int],
    wanted: list[int],
    groups: Mapping[str, Scores],
    by_kind: Mapping[str, Scores],
) -> Configuration:
    """Make a configuration from its runs, given by seed."""
    run, results = next(iter(runs.values())).run, [measured.result for measured in runs.values()]
    scores = {}
    for group, of_group in groups.items():
        if known := _known(columns, of_group):
            by_seed = {seed: of_group.run(column).value for seed, column in known.items()}
            scores[group] = Score(of_group.mean(known), by_seed)
    known_kinds = {kind: _known(columns, of_kind) for kind, of_kind in by_kind.items()}
    return Configuration(
        run.compressor,
        run.C,
        run.n_fusion,
        run.values,
        run.reference,
        setting=run.setting(),
        tokens=results[0]["tokens"],
        wanted=wanted,
        columns=columns,
        test_sets={seed: measured.test_set for seed, measured in runs.items()},
        scores=scores,
        by_kind={kind: by_kind[kind].mean(known) for kind, known in known_kinds.items() if known},
        exact_by_kind=_over_seeds(runs.values(), "accuracy_by_kind"),
        nll_by_kind=_over_seeds(runs.values(), "nll_by_kind"),
        training=Training.of(results),
        prefill_flops=fmean(result["prefill_flops"] for result in results),
        seconds=fmean(result["seconds"] for result in results),
        peak_memory_bytes=max(result["peak_memory_bytes"] for result in results),
    )


def _known(columns: Mapping[int, int], scores: Scores) -> dict[int, int]:
    """Seeds and columns of the runs that have the score."""
    return {seed: column for seed, column in columns.items() if scores.known(column)}


def _over_seeds(runs: Iterable[Measured], name: str) -> dict[str, float]:
    """Mean over runs of one of their `scores` by kind; a kind that only some runs have is averaged over those."""
    values = defaultdict[str, list[float]](list)
    for measured in runs:
        for kind, value in (measured.scores[name] or {}).items():
            values[kind].append(value)
    return {kind: fmean(of_kind) for kind, of_kind in values.items()}


def _identity(run: Run) -> str:
    """Key that is the same for all runs of one configuration."""
    return repr((run.reference, run.compressor, run.C, run.n_fusion, run.values))


def with_differences(configurations: list[Configuration], groups: Mapping[str, Scores]) -> list[Configuration]:
    """Return the configurations with their differences to the reference.

    The p-values of a group are corrected for all comparisons that are made in it.
    """
    found: dict[str, dict[int, Difference]] = {}
    for group, scores in groups.items():
        differences = {}
        for index, configuration in enumerate(configurations):
            reference = reference_among(configuration.setting, configurations)
            if reference is not None and reference is not configuration:
                difference = configuration.less(reference, scores)
                if difference is not None:
                    differences[index] = difference
        found[group] = corrected(differences)
    return [
        replace(
            configuration,
            scores={
                group: replace(score, difference=found[group].get(index))
                for group, score in configuration.scores.items()
            },
        )
        for index, configuration in enumerate(configurations)
    ]


def reference_among(setting: dict[str, Any], configurations: Sequence[Configuration]) -> Configuration | None:
    """Finished reference of a setting, or None."""
    return next((c for c in configurations if c.reference and c.setting == setting), None)


def label_of(attributes: Mapping[str, Any]) -> str:
    """Label: `{"compressor": "query", "C": 2, "N": 4, "trainer.max_steps": 9}` -> `query C=2, N=4, max_steps=9`."""
    named = [
        f"{key.rpartition('.')[2]}={value}"
        for key, value in attributes.items()
        if key != "compressor" and value is not None
    ]
    return " ".join([*([attributes["compressor"]] if "compressor" in attributes else []), ", ".join(named)]).strip()
