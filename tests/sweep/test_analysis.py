"""What a sweep that lies ready in a folder shows, and what of it is not compared."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml

from llava_mini.predictions import Predictions
from llava_mini.sweep.analysis import analyze
from llava_mini.sweep.report import compare

SweepFolder = Callable[..., Path]
ONE_WORD = {"one_word": 0.8}


def test_what_is_not_finished_is_named_and_left_out(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder("compressor.C=1,2,4", failed={"query-C1-N4-s0": "no"}, interrupted=["query-C2-N4-s0"])
    analysis = analyze(folder)
    assert [m.run.label for m in analysis.of_state("failed")] == ["query-C1-N4-s0"]
    assert [m.run.label for m in analysis.of_state("interrupted")] == ["query-C2-N4-s0"]
    assert len(analysis.of_state("finished")) == len(analysis.configurations) == 2


def test_only_runs_of_one_test_set_are_compared(sweep_folder: SweepFolder) -> None:
    analysis = analyze(sweep_folder("data.world_seed=0,1", "compressor.C=1,2", "seed=0,1"))
    assert [(c.key, c.before, c.after, c.at) for c in analysis.changes] == [
        ("C", "1", "2", "query N=4, world_seed=0"),
        ("C", "1", "2", "query N=4, world_seed=1"),
    ]
    for configuration in analysis.configurations:
        reference = analysis.reference_of(configuration)
        assert reference is not None
        assert reference.values == configuration.values
        assert all((s.difference is None) == configuration.reference for s in configuration.scores.values())
    assert analysis.test_sets == 2
    assert analysis.not_compared().endswith("only runs of the same one are compared with each other.")


def test_it_is_said_when_nothing_can_be_compared(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder("data.world_seed=0,1", interrupted=["query-C1-N4-world_seed=0-s0", "none-N0-world_seed=1-s0"])
    analysis = analyze(folder)
    assert len(analysis.configurations) == 2
    assert analysis.changes == []
    assert analysis.to_reference() == []
    assert analysis.not_compared().endswith("so nothing is compared.")
    lines: list[str] = []
    page = compare(folder, lines.append).read_text()
    assert analysis.not_compared() in lines
    assert analysis.not_compared() in page
    assert "2 different test sets" in page


def test_nothing_finished(sweep_folder: SweepFolder) -> None:
    analysis = analyze(sweep_folder(interrupted=["none-N0-s0", "query-C1-N4-s0"]))
    assert (analysis.configurations, analysis.changes, analysis.kinds) == ([], [], [])


def test_a_sweep_without_a_test_split_is_compared_on_validation(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder("compressor.C=1", accuracy=0.7)
    for config in folder.glob("runs/*/config.yaml"):
        content = yaml.safe_load(config.read_text())
        content["data"].update(val="instruct-val", test=None)
        content["data"]["sizes"]["instruct-val"] = 5
        config.write_text(yaml.safe_dump(content))
        config.with_name("predictions_test.npz").rename(config.with_name("predictions_val.npz"))
    analysis = analyze(folder)
    assert analysis.split == "validation"
    assert len(analysis.configurations) == 2
    assert {measured.row()["split"] for measured in analysis.runs} == {"validation"}
    lines: list[str] = []
    assert "360 validation questions" in compare(folder, lines.append).read_text()
    assert lines[0].endswith("% of validation")


def test_groups_and_kinds_stand_dense_before_one_word(sweep_folder: SweepFolder) -> None:
    analysis = analyze(sweep_folder("compressor.C=1"))
    assert analysis.groups == ["dense", "one_word"]
    assert analysis.kinds == ["colors", "digits", "objects", "color", "count", "digit", "exist", "shape", "where"]
    one = analyze(sweep_folder("compressor.C=1", accuracy={"one_word": 0.7}, name="one"))
    assert (one.groups, one.kinds) == (["one_word"], ["color", "count", "digit", "exist", "shape", "where"])
    assert all(list(c.scores) == ["one_word"] for c in one.configurations)


def test_data_without_kinds_is_one_group(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder("compressor.C=1")
    for path in folder.glob("runs/*/predictions_test.npz"):
        answers = Predictions.load(path)
        replace(answers, kind=np.full(len(answers.key), "")).save(path)
    analysis = analyze(folder)
    assert (analysis.groups, analysis.kinds) == (["dense"], [])
    for configuration in analysis.configurations:
        assert 0.7 < configuration.scores["dense"].mean.value < 0.9
        assert (configuration.by_kind, configuration.exact_by_kind) == ({}, {})
    compare(folder, lambda _: None)
    assert not (folder / "accuracy_by_kind.png").exists()


def test_other_questions_under_the_same_names_are_another_test_set(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder("compressor.C=1,2", "seed=0,1,2", accuracy=lambda run: ONE_WORD if run.C == 2 else 0.8)
    analysis = analyze(folder)
    assert analysis.test_sets == 2
    assert {c.label: c.scores["one_word"].difference is None for c in analysis.configurations} == {
        "none N=0": True, "query C=1, N=4": False, "query C=2, N=4": True,
    }  # fmt: skip


def test_the_seeds_that_count_are_common_ones(sweep_folder: SweepFolder) -> None:
    analysis = analyze(sweep_folder("seed=0,1,2", interrupted=["none-N0-s0"]))
    assert [len(c.columns) for c in analysis.configurations] == [2, 3]
    assert (analysis.common_seeds, analysis.conclusive) == (2, False)
    assert analyze(sweep_folder("seed=0,1,2", name="all")).conclusive
