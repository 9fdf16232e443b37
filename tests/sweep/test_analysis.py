"""Configurations, differences and single changes of sweeps that lie ready in a folder."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from llava_mini.spool import Origin, Spool
from llava_mini.sweep.analysis import analyse
from llava_mini.sweep.findings import headline
from llava_mini.sweep.grid import Run
from llava_mini.sweep.report import compare

SweepFolder = Callable[..., Path]


def test_configurations_are_means_over_seeds(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder("compressor.C=1,2", "seed=0,1,2", accuracy=lambda run: {None: 0.9, 1: 0.5, 2: 0.7}[run.C])
    analysis = analyse(folder)
    assert [c.label for c in analysis.configurations] == ["none N=0", "query C=2, N=4", "query C=1, N=4"]
    assert [c.tokens for c in analysis.configurations] == [64, 4, 1]
    best = analysis.configurations[0]
    measured = [
        json.loads((m.folder / "result.json").read_text())["accuracy"]["test"] for m in analysis.runs if m.run.reference
    ]
    assert best.accuracy.value == pytest.approx(np.mean(measured))
    assert best.accuracy.low < best.accuracy.value < best.accuracy.high
    assert list(best.by_seed.values()) == pytest.approx(measured)
    assert (best.difference, best.reference) == (None, True)
    assert analysis.kinds == ["color", "count", "digit", "exist", "shape", "where"]
    assert np.mean([best.by_kind[kind].value for kind in analysis.kinds]) == pytest.approx(best.accuracy.value)
    assert (analysis.questions, analysis.scenes) == (240, 40)


def test_differences_are_to_the_reference_over_common_seeds(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder("compressor.C=1,2", "seed=0,1", interrupted=["query-C1-N4-s0", "none-N0-s1"])
    analysis = analyse(folder)
    by_label = {c.label: c for c in analysis.configurations}
    assert by_label["query C=1, N=4"].difference is None, "its only seed has no reference"
    difference = by_label["query C=2, N=4"].difference
    assert difference is not None
    assert list(difference.by_seed) == [0]
    expected = by_label["query C=2, N=4"].by_seed[0] - by_label["none N=0"].by_seed[0]
    assert difference.value == pytest.approx(expected)
    assert by_label["query C=1, N=4"].wanted == [0, 1]
    assert list(by_label["query C=1, N=4"].columns) == [1]


def test_each_setting_has_its_own_reference(sweep_folder: SweepFolder) -> None:
    def accuracy(run: Run) -> float:
        return 0.9 if run.values["trainer.max_steps"] == 20 else 0.5

    analysis = analyse(sweep_folder("trainer.max_steps=10,20", "fusion.init=copy,random", accuracy=accuracy))
    for configuration in analysis.configurations:
        reference = analysis.reference_of(configuration)
        assert reference is not None
        assert reference.values["trainer.max_steps"] == configuration.values["trainer.max_steps"]
        if not configuration.reference:
            assert configuration.difference is not None
            assert abs(configuration.difference.value) < 0.2


def test_single_changes(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder(
        "compressor=query,avg_pool,zero",
        "compressor.C=1,2,4",
        "fusion.num_layers=0,2",
        accuracy=lambda run: 0.5 + 0.1 * (run.C or 0) if run.n_fusion else 0.3,
    )
    analysis = analyse(folder)
    shown = {(change.key, change.before, change.after, change.at) for change in analysis.changes}
    assert shown == (
        {("compressor", "avg_pool", "query", f"C={c}, N={n}") for c in (1, 2, 4) for n in (0, 2)}
        | {("compressor", "none", "zero", "N=0")}
        | {
            ("C", before, after, f"{compressor} N={n}")
            for before, after in (("0 (zero)", "1"), ("1", "2"), ("2", "4"))
            for compressor in ("query", "avg_pool")
            for n in (0, 2)
        }
        | {("N", "0", "2", f"{compressor} C={c}") for compressor in ("query", "avg_pool") for c in (1, 2, 4)}
        | {("N", "0", "2", "zero")}
    )
    raised = next(c for c in analysis.changes if (c.key, c.before, c.at) == ("C", "2", "query N=2"))
    assert raised.difference.value == pytest.approx(0.2, abs=0.1)
    assert raised.difference.clear


def test_other_values_are_changes_too(sweep_folder: SweepFolder) -> None:
    analysis = analyse(sweep_folder("fusion.init=copy,random", "trainer.max_steps=9,10,100"))
    shown = [(c.key, c.before, c.after, c.at) for c in analysis.changes if c.at.startswith("query")]
    assert shown == [
        ("fusion.init", "copy", "random", "query C=1, N=4, max_steps=10"),
        ("fusion.init", "copy", "random", "query C=1, N=4, max_steps=100"),
        ("fusion.init", "copy", "random", "query C=1, N=4, max_steps=9"),
        ("trainer.max_steps", "9", "10", "query C=1, N=4, init=copy"),
        ("trainer.max_steps", "10", "100", "query C=1, N=4, init=copy"),
        ("trainer.max_steps", "9", "10", "query C=1, N=4, init=random"),
        ("trainer.max_steps", "10", "100", "query C=1, N=4, init=random"),
    ]


def test_what_is_not_finished_is_named_and_left_out(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder("compressor.C=1,2,4", failed={"query-C1-N4-s0": "no"}, interrupted=["query-C2-N4-s0"])
    analysis = analyse(folder)
    assert [m.run.label for m in analysis.of_state("failed")] == ["query-C1-N4-s0"]
    assert [m.run.label for m in analysis.of_state("interrupted")] == ["query-C2-N4-s0"]
    assert len(analysis.of_state("finished")) == len(analysis.configurations) == 2


def test_a_result_without_predictions_is_a_failure(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder()
    next(folder.glob("runs/query*")).joinpath("predictions_test.npz").write_bytes(b"cut")
    failed = analyse(folder).of_state("failed")
    assert [m.outcome.error for m in failed] == ["predictions_test.npz cannot be read (ValueError)"]


def test_a_result_without_its_config_is_a_failure(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder()
    next(folder.glob("runs/query*")).joinpath("config.yaml").write_text("data: [")
    next(folder.glob("runs/none*")).joinpath("config.yaml").unlink()
    failed = analyse(folder).of_state("failed")
    assert [m.outcome.error for m in failed] == [
        "config.yaml cannot be read (UserError)",
        "config.yaml cannot be read (ParserError)",
    ]


def test_only_runs_of_one_test_set_are_compared(sweep_folder: SweepFolder) -> None:
    analysis = analyse(sweep_folder("data.world_seed=0,1", "compressor.C=1,2", "seed=0,1"))
    assert [(c.key, c.before, c.after, c.at) for c in analysis.changes] == [
        ("C", "1", "2", "query N=4, world_seed=0"),
        ("C", "1", "2", "query N=4, world_seed=1"),
    ]
    for configuration in analysis.configurations:
        reference = analysis.reference_of(configuration)
        assert reference is not None
        assert reference.values == configuration.values
        assert (configuration.difference is None) == configuration.reference
    assert analysis.test_sets == 2
    assert analysis.not_compared().endswith("only runs of the same one are compared with each other.")


@pytest.mark.parametrize(
    ("argument", "compared"),
    [
        ("data.sizes.train=100,200", True),
        ("data.folder=a,b", True),
        ("data.sizes.test=40,41", False),
        ("data.splits.test=test,train", False),
        ("data.world_seed=0,1", False),
    ],
)
def test_a_test_set_is_its_world_name_and_size(sweep_folder: SweepFolder, argument: str, compared: bool) -> None:
    analysis = analyse(sweep_folder(argument))
    key = argument.partition("=")[0]
    assert [change.key for change in analysis.changes] == [key, key] * compared
    assert bool(analysis.not_compared()) != compared


def test_a_seed_with_a_world_of_its_own_is_left_out_of_a_difference(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder("seed=0,1")
    changed = next(folder.glob("runs/query*s1-*")) / "config.yaml"
    changed.write_text(changed.read_text().replace('"world_seed": 0', '"world_seed": 5'))
    query = next(c for c in analyse(folder).configurations if c.compressor == "query")
    assert query.difference is not None
    assert list(query.difference.by_seed) == [0]
    assert sorted(query.by_seed) == [0, 1]


def test_it_is_said_when_nothing_can_be_compared(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder("data.world_seed=0,1", interrupted=["query-C1-N4-world_seed=0-s0", "none-N0-world_seed=1-s0"])
    analysis = analyse(folder)
    assert len(analysis.configurations) == 2
    assert analysis.changes == []
    assert all(c.difference is None for c in analysis.configurations)
    assert analysis.not_compared().endswith("so nothing is compared.")
    lines: list[str] = []
    page = compare(folder, lines.append).read_text()
    assert analysis.not_compared() in lines
    assert analysis.not_compared() in page
    assert "2 different test sets" in page


def test_nothing_finished(sweep_folder: SweepFolder) -> None:
    analysis = analyse(sweep_folder(interrupted=["none-N0-s0", "query-C1-N4-s0"]))
    assert (analysis.configurations, analysis.changes, analysis.kinds) == ([], [], [])


def test_rows_hold_all_of_a_run(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder("trainer.max_steps=5,6", failed={"query-C1-N4-max_steps=5-s0": "ValueError: <no>"})
    spooled = Spool(next(folder.glob("runs/none-N0-max_steps=5*")))
    spooled.create(Origin("uri", "experiment", "name", run_id="mlflow-1"))
    rows = [measured.row() for measured in analyse(folder).runs]
    finished, failed = rows[0], rows[1]
    assert (finished["status"], finished["seed"], finished["reference"]) == ("finished", 0, True)
    assert [finished[key] for key in ("compressor", "C", "tokens", "n_fusion")] == ["none", None, 64, 0]
    assert (finished["trainer.max_steps"], finished["fusion.num_layers"]) == (5, 0)
    assert finished["ci_low"] < finished["accuracy"] < finished["ci_high"]
    assert (finished["prefill_flops"], finished["seconds"]) == (84_000_000, 61.5)
    assert (finished["peak_memory_bytes"], finished["mlflow_run_id"]) == (600_000_000, "mlflow-1")
    assert (failed["status"], failed["error"], failed["tokens"]) == ("failed", "ValueError: <no>", 1)
    assert failed["accuracy"] is failed["ci_low"] is failed["prefill_flops"] is failed["mlflow_run_id"] is None
    assert all(list(row) == list(finished) for row in rows)


def test_a_sweep_without_a_test_split_is_compared_on_validation(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder("compressor.C=1", accuracy=0.7)
    for config in folder.glob("runs/*/config.yaml"):
        content = yaml.safe_load(config.read_text())
        content["data"]["splits"].update(val="instruct-val", test=None)
        content["data"]["sizes"]["instruct-val"] = 5
        config.write_text(yaml.safe_dump(content))
        config.with_name("predictions_test.npz").rename(config.with_name("predictions_val.npz"))
    analysis = analyse(folder)
    assert analysis.split == "validation"
    assert len(analysis.configurations) == 2
    assert {measured.row()["split"] for measured in analysis.runs} == {"validation"}
    assert "of the validation questions" in headline(analysis)[0]
