"""Convergence of a run: the gain of its validation scores in the last third of its steps, compared with noise.

A score that still rises says what a configuration reaches after that many steps, not what it can reach.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llava_mini.errors import UserError
from llava_mini.predictions import Predictions

# Gain in the last third that matters, in word accuracy; and the noise above which a run cannot show that it has none.
MATTERS, NOISY = 0.005, 0.01
# Fall of the negative log-likelihood that matters, in nats per word: at first it falls where no answer is right yet.
NATS_MATTER = 0.05
_STANDARD_ERRORS = 2.0


@dataclass(frozen=True)
class Gain:
    """Gain of one group of question kinds in the last third of a run."""

    gained: float  # of the group's mean word accuracy, from -1 to 1
    noise: float  # standard error of `gained` over scenes, each paired with itself; infinite for a single scene
    nll_fell: float = 0.0  # fall of the group's mean negative log-likelihood, in nats per word
    nll_noise: float = 0.0  # standard error of `nll_fell`

    @property
    def improving(self) -> bool:
        """Whether the score rose by more than noise, and by enough to matter."""
        return self.gained > max(_STANDARD_ERRORS * self.noise, MATTERS)

    @property
    def converged(self) -> bool:
        """Whether the score is not improving, is measured well enough to say so, and the likelihood does not rise."""
        still_falls = self.nll_fell > max(_STANDARD_ERRORS * self.nll_noise, NATS_MATTER)
        return not self.improving and not still_falls and self.noise <= NOISY

    def row(self) -> dict[str, float | bool | None]:
        """Entry for result.json, which is strict JSON: unknown noise is null."""
        return {
            "gained": self.gained,
            "noise": self.noise if math.isfinite(self.noise) else None,
            "nll_fell": self.nll_fell,
            "improving": self.improving,
            "converged": self.converged,
        }


def convergence(validations: Path, steps: int, last: Predictions) -> dict[str, Any]:
    """Return what a run's result says about its convergence.

    Args:
        validations: Folder of the run's validations, `step-NNNNNN.npz` each.
        steps: Number of optimizer steps of the run.
        last: Scores of the trained model on validation.

    Returns:
        `converged`: whether all groups of question kinds had converged; false if that could not be measured.
        `gained_last_third`, `gain_noise`: gain and noise of the dense kinds, or of the only group; None if there was
        no validation between a half and two thirds of the steps (noise also if it asked about one scene only).
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
    """Last validation between a half and two thirds of the steps, if it asked the same questions as `last`.

    The validation of the last step does not count: compared with itself, any run would have converged.
    """
    found = {int(match[1]): path for path in validations.glob("step-*.npz") if (match := _STEP.fullmatch(path.name))}
    fitting = [step for step in found if steps / 2 <= step <= math.ceil(steps * 2 / 3) and step < steps]
    if not fitting:
        return None
    try:
        before = Predictions.load(found[max(fitting)])
    except UserError:  # a file left by a killed writer is not a validation
        return None
    same = np.array_equal(before.key, last.key) and np.array_equal(before.turn, last.turn)
    return before if same else None


_STEP = re.compile(r"step-(\d+)\.npz")


def _gain(before: Predictions, after: Predictions, kinds: list[str]) -> Gain:
    """Return the gain of a group's word accuracy, and the fall of its negative log-likelihood."""
    gained, noise = _rise(after.word_accuracy - before.word_accuracy, after, kinds)
    rose, nll_noise = _rise(after.nll - before.nll, after, kinds)
    return Gain(gained, noise, -rose, nll_noise)


def _rise(differences: NDArray[np.floating[Any]], asked: Predictions, kinds: list[str]) -> tuple[float, float]:
    """Return the mean over kinds of a difference, and its standard error with scenes as clusters."""
    scenes, place = np.unique(asked.key, return_inverse=True)
    shares = np.zeros(len(scenes))
    for kind in kinds:
        chosen = asked.kind == kind
        shares += np.bincount(place[chosen], differences[chosen], minlength=len(scenes)) / (len(kinds) * chosen.sum())
    spread = np.square(shares - shares.mean()).sum()
    count = len(scenes)
    return float(shares.sum()), math.sqrt(count / (count - 1) * spread) if count > 1 else math.inf
