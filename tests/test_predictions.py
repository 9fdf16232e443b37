"""Answers are read as they were written; a file that cannot be used is named."""

from pathlib import Path

import numpy as np
import pytest

from llava_mini.errors import UserError
from llava_mini.predictions import Predictions


def make_predictions() -> Predictions:
    """Three questions about each of two scenes."""
    return Predictions(
        key=np.repeat(["scene", "été"], 3),
        turn=np.tile(np.arange(3), 2),
        kind=np.tile(["digit", "color", "digit"], 2),
        correct=np.array([True, False, True, False, False, True]),
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    run = make_predictions()
    run.save(tmp_path / "p.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["p.npz"]
    loaded = Predictions.load(tmp_path / "p.npz")
    for name in ("key", "turn", "kind", "correct"):
        np.testing.assert_array_equal(vars(loaded)[name], vars(run)[name])


def test_predictions_are_read_and_filtered(tmp_path: Path) -> None:
    run = make_predictions()
    np.savez(tmp_path / "p.npz", key=run.key, turn=run.turn, kind=run.kind, correct=run.correct.astype(np.int8))
    loaded = Predictions.load(tmp_path / "p.npz")
    assert loaded.correct.dtype == bool
    assert loaded.of_kind("digit").correct.tolist() == [True, True, False, True]


@pytest.mark.parametrize("fault", ["missing", "cut", "without correct", "lengths", "empty"])
def test_predictions_that_cannot_be_used_are_named(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "predictions_test.npz"
    arrays = {"key": np.array(["a", "b"]), "turn": np.arange(2), "kind": np.array(["k", "k"]), "correct": np.ones(2)}
    if fault == "without correct":
        del arrays["correct"]
    if fault == "lengths":
        arrays["turn"] = np.arange(3)
    if fault == "empty":
        arrays = {name: array[:0] for name, array in arrays.items()}
    if fault != "missing":
        np.savez(path, **arrays)
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(UserError, match=r"predictions_test\.npz"):
        Predictions.load(path)
