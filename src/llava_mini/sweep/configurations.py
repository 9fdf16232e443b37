"""Configurations: runs that differ in their seed only, taken together, and compared with their setting's reference."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from llava_mini.sweep.folder import Sweep
from llava_mini.sweep.grid import Run
from llava_mini.sweep.measured import Measured
from llava_mini.sweep.statistics import Bootstrap, Difference, Interval


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
        return label_of(self.attributes())

    @property
    def series(self) -> str:
        """The label without C: configurations of one series are joined in the plots."""
        return label_of({**self.attributes(), "C": None})

    def less(self, other: Configuration, bootstrap: Bootstrap) -> Difference | None:
        """Accuracy less another's over common seeds of one test set; None without any."""
        same = {seed: column for seed, column in self.columns.items() if self._shares(seed, other)}
        return bootstrap.difference(same, other.columns)

    def _shares(self, seed: int, other: Configuration) -> bool:
        return self.test_sets[seed] == other.test_sets.get(seed)

    def attributes(self) -> dict[str, Any]:
        """All that distinguishes it from the others of its sweep."""
        return {"compressor": self.compressor, "C": self.C, "N": self.n_fusion, **self.values}


def configurations_of(
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


def _identity(run: Run) -> str:
    """What runs of one configuration have in common."""
    return repr((run.reference, run.compressor, run.C, run.n_fusion, run.values))


def with_differences(configurations: list[Configuration], bootstrap: Bootstrap) -> list[Configuration]:
    """The same, each compared with its reference."""
    compared = []
    for configuration in configurations:
        reference = reference_among(configuration.setting, configurations)
        if reference is not None and reference is not configuration:
            configuration = replace(configuration, difference=configuration.less(reference, bootstrap))
        compared.append(configuration)
    return compared


def reference_among(setting: dict[str, Any], configurations: Sequence[Configuration]) -> Configuration | None:
    """The finished reference of a setting, if there is one."""
    return next((c for c in configurations if c.reference and c.setting == setting), None)


def label_of(attributes: Mapping[str, Any]) -> str:
    """`{"compressor": "query", "C": 2, "N": 4, "trainer.max_steps": 9}` -> `query C=2, N=4, max_steps=9`."""
    named = [
        f"{key.rpartition('.')[2]}={value}"
        for key, value in attributes.items()
        if key != "compressor" and value is not None
    ]
    return " ".join([*([attributes["compressor"]] if "compressor" in attributes else []), ", ".join(named)]).strip()
