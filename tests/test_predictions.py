"""Answers are read as they were written; a file that cannot be used is named."""

from pathlib import Path

import numpy as np
import pytest

from llava_mini.errors import UserError
from llava_mini.predictions import Predictions


def make_predictions() -> Predictions:
    """Three questions about each of two scenes; `list` is answered with four words."""
    return Predictions(
        key=np.repeat(["scene", "été"], 3),
        turn=np.tile(np.arange(3), 2),
        kind=np.tile(["digit", "list", "color"], 2),
        words=np.tile([1, 4, 1], 2),
        exact_match=np.array([1, 0, 1, 1, 0, 0], np.float32),
        word_accuracy=np.array([1, 0.75, 1, 1, 0.25, 0], np.float32),
        nll=np.array([0.1, 1.0, 0.2, 0.3, 2.0, 4.0], np.float32),
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    run = make_predictions()
    run.save(tmp_path / "p.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["p.npz"]
    loaded = Predictions.load(tmp_path / "p.npz")
    for name, values in vars(run).items():
        np.testing.assert_array_equal(vars(loaded)[name], values)
        assert vars(loaded)[name].dtype == values.dtype


def test_the_questions_of_a_kind_are_chosen() -> None:
    chosen = make_predictions().of_kind("list")
    assert chosen.word_accuracy.tolist() == [0.75, 0.25] and chosen.key.tolist() == ["scene", "été"]


def test_headline_metrics_are_means_over_the_kinds_of_a_group() -> None:
    run = make_predictions()
    assert run.groups() == {"dense": ["list"], "one_word": ["color", "digit"]}
    assert run.group_means("word_accuracy") == {"dense": 0.5, "one_word": 0.75}
    assert run.by_kind("word_accuracy") == {"color": 0.5, "digit": 1.0, "list": 0.5}
    assert run.by_kind("exact_match") == {"color": 0.5, "digit": 1.0, "list": 0.0}
    assert run.accuracy() == 0.5
    fewer = run.chosen(np.array([True, True, True, False, True, True]))  # kinds weigh alike, however many questions
    assert fewer.group_means("word_accuracy")["one_word"] == 0.75
    with pytest.raises(ValueError, match="exact_match, word_accuracy, nll"):
        run.score("bleu")


def test_data_without_kinds_is_one_kind() -> None:
    run = make_predictions()
    nameless = Predictions(**{**vars(run), "kind": np.full(6, "")})
    assert nameless.groups() == {"dense": [""]} and nameless.by_kind("nll") == {}
    assert nameless.group_means("word_accuracy")["dense"] == pytest.approx(4 / 6)


FAULTS = [
    "missing",
    "cut",
    "without nll",
    "lengths",
    "empty",
    "nan",
    "inf",
    "scalars",
    "no character",
    "compressed anew",
]


@pytest.mark.parametrize("fault", FAULTS)
def test_predictions_that_cannot_be_used_are_named(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "predictions_test.npz"
    arrays = dict(vars(make_predictions()))
    if fault == "without nll":
        del arrays["nll"]
    if fault == "lengths":
        arrays["turn"] = np.arange(4)
    if fault in ("nan", "inf"):
        arrays["nll"] = np.array([1, 1, 1, float(fault), 1, 1], np.float32)
    if fault == "empty":
        arrays = {name: array[:0] for name, array in arrays.items()}
    if fault == "no character":
        arrays["kind"] = np.full((6, 1), 0x110000, np.uint32).view("U1")[:, 0]
    if fault == "scalars":
        arrays = {name: array[0] for name, array in arrays.items()}
    if fault != "missing":
        np.savez(path, **arrays)
    if fault == "compressed anew":  # by a method that zipfile does not know
        raw = bytearray(path.read_bytes())
        raw[8] = raw[raw.index(b"PK\x01\x02") + 10] = 99
        path.write_bytes(raw)
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(UserError, match=r"predictions_test\.npz"):
        Predictions.load(path)
