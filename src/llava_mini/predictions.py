"""Which of a run's answers were right, and the file that keeps it: written by an evaluation, read by a comparison."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llava_mini.errors import UserError
from llava_mini.files import atomic_path


@dataclass(frozen=True)
class Predictions:
    """Which of a run's answers were right: arrays of one length, an entry for each question.

    Attributes:
        key: the scene (the sample's key in its shard).
        turn: the question's number within the scene.
        kind: the kind of question.
        correct: whether the answer was right.
    """

    key: NDArray[np.str_]
    turn: NDArray[np.int64]
    kind: NDArray[np.str_]
    correct: NDArray[np.bool_]

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """Reads `predictions_{val,test}.npz`.

        Raises:
            UserError: naming the file, when it is missing, cut or of other content.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                loaded = cls(arrays["key"], arrays["turn"], arrays["kind"], arrays["correct"].astype(bool))
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path.name} cannot be read ({type(error).__name__})") from error
        lengths = {len(array) for array in (loaded.key, loaded.turn, loaded.kind, loaded.correct)}
        if len(lengths) != 1 or lengths == {0}:
            raise UserError(f"{path.name} holds arrays of lengths {sorted(lengths)}, not one length above 0")
        return loaded

    def save(self, path: Path) -> None:
        """Writes what `load` reads, whole or not at all."""
        with atomic_path(path) as temporary, temporary.open("wb") as file:  # savez adds .npz to a name, not to a file
            np.savez_compressed(file, key=self.key, turn=self.turn, kind=self.kind, correct=self.correct)

    def of_kind(self, kind: str) -> Predictions:
        """The questions of one kind."""
        chosen = self.kind == kind
        return Predictions(self.key[chosen], self.turn[chosen], self.kind[chosen], self.correct[chosen])
