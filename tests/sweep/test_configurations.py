"""Runs of one configuration are taken together over seeds, and compared with the reference of their setting."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llava_mini.sweep.analysis import analyse
from llava_mini.sweep.grid import Run

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


def test_a_seed_with_a_world_of_its_own_is_left_out_of_a_difference(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder("seed=0,1")
    changed = next(folder.glob("runs/query*s1-*")) / "config.yaml"
    changed.write_text(changed.read_text().replace('"world_seed": 0', '"world_seed": 5'))
    query = next(c for c in analyse(folder).configurations if c.compressor == "query")
    assert query.difference is not None
    assert list(query.difference.by_seed) == [0]
    assert sorted(query.by_seed) == [0, 1]
