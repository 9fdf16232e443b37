"""Scores of a run's answer to every question, and their file: written by an evaluation, read by a comparison.

Each answer has three scores. Exact match is what a user sees. Word accuracy gives credit for the right part of a long
answer. The negative log-likelihood changes smoothly where the other two jump.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llava_mini.errors import UserError
from llava_mini.files import atomic_path

SCORES = ("exact_match", "word_accuracy", "nll")
_TYPES = {"turn": np.int64, "words": np.int64, **dict.fromkeys(SCORES, np.float32)}


@dataclass(frozen=True)
class Predictions:
    """Scores of a run's answers: arrays of equal length with one entry per question.

    Attributes:
        key: Scene of the question (the sample's key in its shard).
        turn: Number of the question within the scene.
        kind: Kind of the question; "" where the data names none.
        words: Number of words in the right answer, at least 1.
        exact_match: 1 when greedy decoding gives the answer word for word, else 0.
        word_accuracy: Share of the answer's words that are right at their place, from 0 to 1, each given the right
            words before it; the end of the answer counts with its last word, so it is 1 where `exact_match` is.
        nll: Negative log-likelihood of the answer and its end, in nats per word.
    """

    key: NDArray[np.str_]
    turn: NDArray[np.int64]
    kind: NDArray[np.str_]
    words: NDArray[np.int64]
    exact_match: NDArray[np.float32]
    word_accuracy: NDArray[np.float32]
    nll: NDArray[np.float32]

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """Read `predictions_{val,test}.npz`.

        Raises:
            UserError: the file is missing, truncated or has other content; it names the file.
        """
        names = [field.name for field in fields(cls)]
        try:
            with np.load(path, allow_pickle=False) as arrays:
                loaded = cls(*(arrays[name].astype(_TYPES.get(name, arrays[name].dtype)) for name in names))
            for text in (loaded.key, loaded.kind):
                text.tolist()  # numpy finds characters that do not exist only now
        except Exception as error:  # numpy and zipfile raise many kinds of errors for damaged files
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise UserError(f"{path.name} cannot be read ({reason})") from error
        shapes = {vars(loaded)[name].shape for name in names}
        if len(shapes) != 1 or len(next(iter(shapes))) != 1 or shapes == {(0,)}:
            raise UserError(f"{path.name} contains arrays of shapes {sorted(shapes)}, not of one length above 0")
        loaded.check(path.name)
        return loaded

    def check(self, name: str) -> None:
        """Refuse scores that are NaN or infinite, which no comparison can use.

        Args:
            name: Name of the source of the scores, for the message.

        Raises:
            UserError: a score is NaN or infinite; it gives `name` and the key of the first such sample.
        """
        for score in SCORES:
            wrong = np.flatnonzero(~np.isfinite(self.score(score)))
            if len(wrong):
                first = wrong[0]
                raise UserError(f"{name}: {score} of {self.key[first]} is {self.score(score)[first]}")

    def save(self, path: Path) -> None:
        """Write the file that `load` reads, completely or not at all."""
        with atomic_path(path) as temporary, temporary.open("wb") as file:  # savez adds .npz to a name, not to a file
            np.savez_compressed(file, **vars(self))

    def chosen(self, mask: NDArray[np.bool_]) -> Predictions:
        """Return the questions where `mask` is true.

        Args:
            mask: Choice of questions, [number of questions] bool.
        """
        return Predictions(**{name: values[mask] for name, values in vars(self).items()})

    def of_kind(self, kind: str) -> Predictions:
        """Return the questions of one kind."""
        return self.chosen(self.kind == kind)

    def score(self, name: str) -> NDArray[np.float32]:
        """Return the named score, one of `SCORES`, for every question."""
        if name not in SCORES:
            raise ValueError(f"unknown score {name!r}; there are {', '.join(SCORES)}")
        scores: NDArray[np.float32] = vars(self)[name]
        return scores

    def accuracy(self) -> float:
        """Return the share of exact matches over all questions; NaN without questions."""
        return float(self.exact_match.mean(dtype=np.float64)) if len(self.key) else float("nan")

    def groups(self) -> dict[str, list[str]]:
        """Group the kinds by answer length: {"dense": [...], "one_word": [...]}.

        A kind is `one_word` when all its answers are one word and `dense` otherwise. A group without kinds is left
        out. Headline metrics are means over the kinds of a group (`group_means`). One mean over all kinds would hide
        that pre-fused text can carry one word of an answer but not dozens.
        """
        kinds: dict[str, list[str]] = {"dense": [], "one_word": []}
        for kind in sorted({str(kind) for kind in self.kind}):
            kinds["one_word" if (self.words[self.kind == kind] == 1).all() else "dense"].append(kind)
        return {group: names for group, names in kinds.items() if names}

    def by_kind(self, name: str) -> dict[str, float]:
        """Return the mean of a score for every kind; {} if the data names no kinds."""
        scores = self.score(name)
        kinds = sorted({str(kind) for kind in self.kind} - {""})
        return {kind: float(scores[self.kind == kind].mean(dtype=np.float64)) for kind in kinds}

    def group_means(self, name: str) -> dict[str, float]:
        """Return the headline metrics: for each group of `groups`, the mean of its kinds' mean scores.

        This is the only definition of them (README, reports, MLflow and validation all use it). Every kind has the same
        weight, however many questions it has. Data without kinds counts as one kind.
        """
        scores = self.score(name)
        return {
            group: float(np.mean([scores[self.kind == kind].mean(dtype=np.float64) for kind in kinds]))
            for group, kinds in self.groups().items()
        }
