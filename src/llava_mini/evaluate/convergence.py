"""Whether a run had converged: what its validation scores still gained in the last third of its steps, against noise.

A score that still rises says what a configuration reaches after so many steps, not what it can reach.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llava_mini.errors import UserError
from llava_mini.predictions import Predictions

# A gain of the last third that matters, in word accuracy; and the noise above which a run cannot show that it has none.
MATTERS, NOISY = 0.005, 0.01
_STANDARD_ERRORS = 2.0


@dataclass(frozen=True)
class Gain:
    """What one group of kinds gained in the last third of a run.

    Attributes:
        gained: Difference of the group's mean word accuracy, from -1 to 1.
        noise: Standard error of it over scenes, each with itself; infinite for a single scene.
    """

    gained: float
    noise: float

    @property
    def improving(self) -> bool:
        """Whether it rose by more than noise, and by enough to matter."""
        return self.gained > max(_STANDARD_ERRORS * self.noise, MATTERS)

    @property
    def converged(self) -> bool:
        """Whether it is not improving, and measured well enough to say so."""
        return not self.improving and self.noise <= NOISY

    def row(self) -> dict[str, float | bool | None]:
        """As in result.json, which is strict JSON: noise that is not known is null."""
        return {
            "gained": self.gained,
            "noise": self.noise if math.isfinite(self.noise) else None,
            "improving": self.improving,
            "converged": self.converged,
        }


def convergence(validations: Path, steps: int, last: Predictions) -> dict[str, Any]:
    """What a run's result says of its convergence.

    Args:
        validations: The folder of its validations, `step-NNNNNN.npz` each.
        steps: Optimizer steps of the run.
        last: Scores on validation of the trained model.

    Returns:
        `converged`: whether all groups of kinds had converged; false where that could not be measured.
        `gained_last_third`, `gain_noise`: of the dense kinds, or of the only group; None where there was no validation
        between a half and two thirds of the steps (noise also where it asked about one scene only).
        `gains`: for every group `gained`, `noise`, and whether it is `improving` or `converged`.
    """
    before = _before(validations, steps, last)
    gains = {} if before is None else {group: _gain(before, last, kinds) for group, kinds in last.groups().items()}
    headline = gains.get("dense", next(iter(gains.values()), None))
    return {
        "converged": bool(gains) and all(gain.converged for gain in gains.values()),
        "gained_last_third": None if headline is None else headline.gained,
        "gain_noise": None if headline is None else headline.row()["noise"],
        "gains": {group: gain.row() for group, gain in gains.items()},
    }


def _before(validations: Path, steps: int, last: Predictions) -> Predictions | None:
    """The last validation between a half and two thirds of the steps, if it asked what `last` asks.

    That of the last step is none: compared with itself, any run would have converged.
    """
    found = {int(match[1]): path for path in validations.glob("step-*.npz") if (match := _STEP.fullmatch(path.name))}
    fitting = [step for step in found if steps / 2 <= step <= math.ceil(steps * 2 / 3) and step < steps]
    if not fitting:
        return None
    try:
        before = Predictions.load(found[max(fitting)])
    except UserError:  # what a killed writer left is no validation
        return None
    same = np.array_equal(before.key, last.key) and np.array_equal(before.turn, last.turn)
    return before if same else None


_STEP = re.compile(r"step-(\d+)\.npz")


def _gain(before: Predictions, after: Predictions, kinds: list[str]) -> Gain:
    """The gain of a mean over kinds, and its standard error with scenes as clusters."""
    scenes, place = np.unique(after.key, return_inverse=True)
    shares = np.zeros(len(scenes))
    for kind in kinds:
        chosen = after.kind == kind
        difference = (after.word_accuracy[chosen] - before.word_accuracy[chosen]).astype(np.float64)
        shares += np.bincount(place[chosen], difference, minlength=len(scenes)) / (len(kinds) * chosen.sum())
    spread = np.square(shares - shares.mean()).sum()
    count = len(scenes)
    noise = math.sqrt(count / (count - 1) * spread) if count > 1 else math.inf
    return Gain(float(shares.sum()), noise)
