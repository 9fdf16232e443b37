"""How far the runs of a configuration were trained: for how many steps, from what, and whether they had converged.

What is measured before that is a result of a budget, not of what a configuration can do, and is called so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from llava_mini.sweep.text import points

# Below this a gain may be noise: such a run did not show that it was still improving, nor that it had converged.
_STANDARD_ERRORS = 2.0


@dataclass(frozen=True)
class Training:
    """The training of one or more runs.

    Attributes:
        runs: Number of runs.
        improving: What those that were still improving gained in word accuracy over the last third of their steps.
        not_shown: How many others were not shown to have converged.
        steps: All numbers of steps that there are, ascending.
        starts: All starts that there are.
    """

    runs: int
    improving: tuple[float, ...]
    not_shown: int
    steps: tuple[int, ...]
    starts: tuple[str, ...]

    @classmethod
    def of(cls, results: Sequence[Mapping[str, Any]]) -> Training:
        """Read from the runs' `result.json`."""
        marked = [result for result in results if not result["converged"]]
        improving = tuple(result["gained_last_third"] for result in marked if _improves(result))
        return cls(
            len(results),
            improving,
            len(marked) - len(improving),
            tuple(sorted({int(result["steps"]) for result in results})),
            tuple(sorted({str(result["start"]) for result in results})),
        )

    @property
    def converged(self) -> bool:
        """Whether all runs had converged."""
        return not self.improving and not self.not_shown

    def mark(self) -> str:
        """`still improving: +3.1 points in the last third`; empty when all had converged."""
        parts = []
        if self.improving:
            gained = points(fmean(self.improving))
            parts.append(f"still improving: {gained} points in the last third{self._share(len(self.improving))}")
        if self.not_shown:
            parts.append(f"not shown to have converged{self._share(self.not_shown)}")
        return "; ".join(parts)

    def _share(self, count: int) -> str:
        return "" if count == self.runs else f", {count} of {self.runs} runs"


def budget(trainings: Iterable[Training]) -> str:
    """`after 300 steps from a common start`."""
    trainings = list(trainings)
    steps = sorted({count for training in trainings for count in training.steps})
    starts = {start for training in trainings for start in training.starts}
    length = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
    return f"after {length} steps from {'a common start' if len(starts) == 1 else 'starts that differ'}"


def _improves(result: Mapping[str, Any]) -> bool:
    """Whether the gain is known and more than noise."""
    gained, noise = result["gained_last_third"], result["gain_noise"]
    return gained is not None and gained > _STANDARD_ERRORS * (noise or 0.0)
