"""A run of a sweep as it is read from its folder: its row, its test set, and what makes it a failure."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llava_mini.sweep.analysis import analyze
from llava_mini.tracking.spool import Origin, Spool

SweepFolder = Callable[..., Path]
SCORES = ("word_accuracy", "nll", "accuracy_by_kind", "word_accuracy_by_kind", "nll_by_kind")
STILL_IMPROVING = {"converged": False, "gained_last_third": 0.03, "gain_noise": 0.004}


def test_a_result_without_predictions_is_a_failure(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder()
    next(folder.glob("runs/query*")).joinpath("predictions_test.npz").write_bytes(b"cut")
    failed = analyze(folder).of_state("failed")
    assert [m.outcome.error for m in failed] == ["predictions_test.npz cannot be read (ValueError)"]
    assert failed[0].what_failed == (
        "predictions_test.npz cannot be read (ValueError); delete its folder to have it run again"
    )


def test_a_run_that_left_no_result_is_run_again(sweep_folder: SweepFolder) -> None:
    failed = analyze(sweep_folder(failed={"query-C1-N4-s0": "ValueError: no"})).of_state("failed")
    assert [m.what_failed for m in failed] == ["ValueError: no"]


def test_a_result_without_its_config_is_a_failure(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder()
    next(folder.glob("runs/query*")).joinpath("config.yaml").write_text("data: [")
    next(folder.glob("runs/none*")).joinpath("config.yaml").unlink()
    failed = analyze(folder).of_state("failed")
    assert [m.outcome.error for m in failed] == [
        "config.yaml cannot be read (UserError)",
        "config.yaml cannot be read (UserError)",
    ]


@pytest.mark.parametrize(
    ("argument", "compared"),
    [
        ("data.sizes.train=100,200", True),
        ("data.folder=a,b", True),
        ("data.sizes.test=40,41", False),
        ("data.test=test,train", False),
        ("data.world_seed=0,1", False),
    ],
)
def test_a_test_set_is_its_world_name_and_size(sweep_folder: SweepFolder, argument: str, compared: bool) -> None:
    analysis = analyze(sweep_folder(argument))
    key = argument.partition("=")[0]
    assert [change.key for change in analysis.changes] == [key, key] * compared
    assert bool(analysis.not_compared()) != compared


def test_a_result_that_lacks_what_a_report_needs_is_a_failure(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder()
    path = next(folder.glob("runs/query*")) / "result.json"
    result = json.loads(path.read_text())
    del result["converged"], result["steps"]
    path.write_text(json.dumps(result))
    assert [m.outcome.error for m in analyze(folder).of_state("failed")] == ["result.json lacks steps, converged"]


def test_rows_hold_all_of_a_run(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder(
        "trainer.max_steps=5,6", failed={"query-C1-N4-max_steps=5-s0": "ValueError: <no>"}, training=STILL_IMPROVING
    )
    spooled = Spool(next(folder.glob("runs/none-N0-max_steps=5*")))
    spooled.create(Origin("uri", "experiment", "name", run_id="mlflow-1"))
    analysis = analyze(folder)
    rows = [measured.row() for measured in analysis.runs]
    finished, failed = rows[0], rows[1]
    assert (finished["status"], finished["seed"], finished["reference"]) == ("finished", 0, True)
    assert [finished[key] for key in ("compressor", "C", "tokens", "n_fusion")] == ["none", None, 64, 0]
    assert (finished["trainer.max_steps"], finished["fusion.num_layers"]) == (5, 0)
    assert finished["ci_low"] < finished["accuracy"] < finished["ci_high"]
    assert (finished["prefill_flops"], finished["seconds"]) == (84_000_000, 61.5)
    assert (finished["peak_memory_bytes"], finished["mlflow_run_id"]) == (600_000_000, "mlflow-1")
    assert (finished["converged"], finished["gained_last_third"], finished["gain_noise"]) == (False, 0.03, 0.004)
    assert (finished["steps"], finished["start"]) == (5, "the uncompressed instruction model")
    result = json.loads((analysis.runs[0].folder / "result.json").read_text())
    assert finished["accuracy"] == pytest.approx(result["accuracy"]["test"])
    for key in SCORES:
        assert finished[key] == pytest.approx(result[key]["test"])
    assert (failed["status"], failed["error"], failed["tokens"]) == ("failed", "ValueError: <no>", 1)
    nothing = (*SCORES, "accuracy", "ci_low", "prefill_flops", "mlflow_run_id", "converged", "gained_last_third")
    assert [failed[key] for key in nothing] == [None] * len(nothing)
    assert all(list(row) == list(finished) for row in rows)
