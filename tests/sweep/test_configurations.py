"""Runs of one configuration are taken together over seeds, and compared with the reference of their setting."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llava_mini.sweep.analysis import analyze
from llava_mini.sweep.grid import Run

SweepFolder = Callable[..., Path]


def test_configurations_are_means_over_seeds(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder("compressor.C=1,2", "seed=0,1,2", accuracy=lambda run: {None: 0.9, 1: 0.5, 2: 0.7}[run.C])
    analysis = analyze(folder)
    reference = analysis.configurations[0]
    results = [json.loads((m.folder / "result.json").read_text()) for m in analysis.runs if m.run.reference]
    for group in ("dense", "one_word"):
        measured = [result["word_accuracy"]["test"][group] for result in results]
        score = reference.scores[group]
        assert score.mean.value == pytest.approx(np.mean(measured))
        assert score.mean.interval is not None
        assert score.mean.interval[0] < score.mean.value < score.mean.interval[1]
        assert list(score.by_seed.values()) == pytest.approx(measured)
        assert score.difference is None
    for kind in analysis.kinds:
        for name, own in (("accuracy", reference.exact_by_kind), ("nll", reference.nll_by_kind)):
            assert own[kind] == pytest.approx(np.mean([result[f"{name}_by_kind"]["test"][kind] for result in results]))
    of_kinds = [reference.by_kind[kind].value for kind in ("digits", "colors", "objects")]
    assert np.mean(of_kinds) == pytest.approx(reference.scores["dense"].mean.value)
    assert (analysis.questions, analysis.scenes) == (360, 40)


def test_their_order_is_that_of_the_sweep_and_not_of_the_scores(sweep_folder: SweepFolder) -> None:
    arguments = (
        "compressor=query,avg_pool,zero",
        "compressor.C=4,1",
        "fusion.num_layers=4,0",
        "trainer.max_steps=20,9",
    )
    for name, rises in (("up", 1), ("down", -1)):
        folder = sweep_folder(*arguments, accuracy=lambda run, rises=rises: 0.5 + rises * 0.1 * (run.C or 0), name=name)
        labels = [c.label.removesuffix(", max_steps=20") for c in analyze(folder).configurations[:11]]
        assert labels == [
            "none N=0", "zero N=0", "avg_pool C=1, N=0", "avg_pool C=4, N=0", "query C=1, N=0", "query C=4, N=0",
            "zero N=4", "avg_pool C=1, N=4", "avg_pool C=4, N=4", "query C=1, N=4", "query C=4, N=4",
        ]  # fmt: skip


def test_differences_are_to_the_reference_over_common_seeds(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder("compressor.C=1,2", "seed=0,1", interrupted=["query-C1-N4-s0", "none-N0-s1"])
    by_label = {c.label: c for c in analyze(folder).configurations}
    assert by_label["query C=1, N=4"].scores["dense"].difference is None, "its only seed has no reference"
    score = by_label["query C=2, N=4"].scores["dense"]
    assert score.difference is not None
    assert list(score.difference.by_seed) == [0]
    assert score.difference.value == pytest.approx(score.by_seed[0] - by_label["none N=0"].scores["dense"].by_seed[0])
    assert by_label["query C=1, N=4"].wanted == [0, 1]
    assert list(by_label["query C=1, N=4"].columns) == [1]


def test_p_values_are_corrected_for_all_comparisons_with_a_reference(sweep_folder: SweepFolder) -> None:
    analysis = analyze(sweep_folder("compressor.C=1,2,4", "trainer.max_steps=9,10", "seed=0,1,2", accuracy=0.6))
    for group in analysis.groups:
        made = [(difference.p or 0.0, difference) for difference in analysis.to_reference(group)]
        assert len(made) == 6
        highest = 0.0
        for rank, (p, difference) in enumerate(sorted(made, key=lambda pair: pair[0])):
            highest = max(highest, min(1.0, (6 - rank) * p))
            assert difference.corrected_p == pytest.approx(highest)
            assert difference.clear == (highest < 0.05)


def test_each_setting_has_its_own_reference(sweep_folder: SweepFolder) -> None:
    def accuracy(run: Run) -> float:
        return 0.9 if run.values["trainer.max_steps"] == 20 else 0.5

    analysis = analyze(sweep_folder("trainer.max_steps=10,20", "fusion.init=copy,random", accuracy=accuracy))
    for configuration in analysis.configurations:
        reference = analysis.reference_of(configuration)
        assert reference is not None
        assert reference.values["trainer.max_steps"] == configuration.values["trainer.max_steps"]
        if not configuration.reference:
            assert abs(configuration.scores["dense"].difference.value) < 0.2


def test_a_seed_with_a_world_of_its_own_is_left_out_of_a_difference(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder("seed=0,1")
    changed = next(folder.glob("runs/query*s1-*")) / "config.yaml"
    changed.write_text(changed.read_text().replace('"world_seed": 0', '"world_seed": 5'))
    query = next(c for c in analyze(folder).configurations if c.compressor == "query")
    assert list(query.scores["dense"].difference.by_seed) == [0]
    assert sorted(query.scores["dense"].by_seed) == [0, 1]
