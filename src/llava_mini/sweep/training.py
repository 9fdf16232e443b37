"""How far the runs of a configuration were trained: for how many steps, from what, and whether they had converged.

What is measured before that is a result of a budget, not of what a configuration can do, and is called so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from llava_mini.sweep.text import points

NOT_SHOWN = "not shown to have converged"


@dataclass(frozen=True)
class Training:
    """The training of one or more runs.

    Attributes:
        runs: Number of runs.
        improving: How many of them were not shown to have converged.
        gained: What those gained in word accuracy over the last third of their steps, the mean of the known ones;
            None where none is known.
        steps: All numbers of steps that there are, ascending.
        starts: All starts that there are.
    """

    runs: int
    improving: int
    gained: float | None
    steps: tuple[int, ...]
    starts: tuple[str, ...]

    @classmethod
    def of(cls, results: Sequence[Mapping[str, Any]]) -> Training:
        """Read from the runs' `result.json`."""
        improving = [result["gained_last_third"] for result in results if not result["converged"]]
        known = [gained for gained in improving if gained is not None]
        return cls(
            len(results),
            len(improving),
            fmean(known) if known else None,
            tuple(sorted({int(result["steps"]) for result in results})),
            tuple(sorted({str(result["start"]) for result in results})),
        )

    @property
    def converged(self) -> bool:
        """Whether all runs had converged."""
        return not self.improving

    def mark(self) -> str:
        """`still improving: +3.1 points in the last third`; empty when it had converged."""
        if self.converged:
            return ""
        share = "" if self.improving == self.runs else f" ({self.improving} of {self.runs} runs)"
        if self.gained is None or self.gained <= 0:
            return NOT_SHOWN + share
        return f"still improving: {points(self.gained)} points in the last third{share}"


def budget(trainings: Iterable[Training]) -> str:
    """`after 300 steps from a common start`."""
    trainings = list(trainings)
    steps = sorted({count for training in trainings for count in training.steps})
    starts = {start for training in trainings for start in training.starts}
    length = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
    return f"after {length} steps from {'a common start' if len(starts) == 1 else 'starts that differ'}"
