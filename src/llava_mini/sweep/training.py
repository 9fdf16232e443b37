"""Training of a configuration's runs: for how many steps, from which start, and whether they had converged.

Figures measured before convergence are of a budget, not of what a configuration can do, and are reported as such.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from llava_mini.sweep.text import on_group, points


@dataclass(frozen=True)
class Training:
    """Training of one or more runs."""

    gains: tuple[Mapping[str, Mapping[str, Any]], ...]  # of each run by group that was measured: `evaluate.convergence`
    ends: tuple[bool, ...]  # whether each run had converged
    steps: tuple[int, ...]  # all different numbers, ascending
    starts: tuple[str, ...]  # all different ones

    @classmethod
    def of(cls, results: Sequence[Mapping[str, Any]]) -> Training:
        """Make it from the contents of the runs' `result.json`."""
        return cls(
            tuple(result["gains"] for result in results),
            tuple(bool(result["converged"]) for result in results),
            tuple(sorted({int(result["steps"]) for result in results})),
            tuple(sorted({str(result["start"]) for result in results})),
        )

    @property
    def converged(self) -> bool:
        """Whether all runs had converged, on every group of kinds."""
        return all(self.ends)

    def converged_on(self, group: str) -> bool:
        """Whether all runs had converged on one group of kinds."""
        return all(group in gains and gains[group]["converged"] for gains in self.gains)

    def mark(self, group: str | None = None) -> str:
        """Text such as `still improving: +3.1 points in the last third`; empty if all runs had converged.

        It is about one group of question kinds. None: the first group that was still improving, or else was not shown
        to have converged; it is named if there are several groups.
        """
        if group is not None:
            return self._mark(group, "")
        named = list(dict.fromkeys(name for gains in self.gains for name in gains))
        marks = [mark for mark in (self._mark(name, on_group(name, named)) for name in named) if mark]
        marks.sort(key=lambda mark: not mark.startswith(_IMPROVING))
        return next(iter(marks), "" if self.converged else _NOT_SHOWN)

    def _mark(self, group: str, where: str) -> str:
        marked = [gains.get(group) for gains in self.gains if group not in gains or not gains[group]["converged"]]
        improving = [gain["gained"] for gain in marked if gain is not None and gain["improving"]]
        parts = []
        if improving:
            gained = f"{points(fmean(improving))} points{where} in the last third"
            parts.append(f"{_IMPROVING}: {gained}{self._share(len(improving))}")
        if unknown := len(marked) - len(improving):
            parts.append(f"{_NOT_SHOWN}{where}{self._share(unknown)}")
        return "; ".join(parts)

    def _share(self, count: int) -> str:
        return "" if count == len(self.ends) else f", {count} of {len(self.ends)} runs"


_IMPROVING, _NOT_SHOWN = "still improving", "not shown to have converged"


def budget(trainings: Iterable[Training]) -> str:
    """Text such as `after 300 steps from a common start`."""
    trainings = list(trainings)
    steps = sorted({count for training in trainings for count in training.steps})
    starts = {start for training in trainings for start in training.starts}
    length = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
    return f"after {length} steps from {'a common start' if len(starts) == 1 else 'starts that differ'}"
