"""The report's first sentences, for sweeps whose outcome is known."""

from collections.abc import Callable
from pathlib import Path

from llava_mini.sweep.analysis import analyse
from llava_mini.sweep.findings import compared, headline
from llava_mini.sweep.grid import Run
from llava_mini.sweep.statistics import Difference

SweepFolder = Callable[..., Path]
MINUS = "\N{MINUS SIGN}"


def flat_with_fusion(run: Run) -> float:
    return {0: 0.4, 4: 0.9}[run.n_fusion] if run.compressor != "none" else 0.9


def test_the_cheapest_within_a_few_points_and_its_controls(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder(
        "compressor=query,zero", "compressor.C=1,2", "fusion.num_layers=0,4", "seed=0,1,2", accuracy=flat_with_fusion
    )
    first, without_fusion, without_tokens = headline(analyse(folder))
    assert first.startswith("query (C=1, 4 pre-fusion layers) answers ")
    assert " from 1 vision token instead of 64, " in first
    assert first.endswith("with 1.6 times fewer prefill FLOPs.")
    assert without_fusion.startswith("Without pre-fusion it answers 4")
    assert "points below (95 % interval " + MINUS in without_fusion
    assert without_tokens.startswith("The control without any vision token, zero (4 pre-fusion layers), answers ")


def test_the_most_accurate_where_none_comes_near(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder("compressor.C=1,2,4", accuracy=lambda run: {None: 0.95, 1: 0.2, 2: 0.6, 4: 0.4}[run.C])
    sentences = headline(analyse(folder))
    assert len(sentences) == 1
    assert sentences[0].startswith("query (C=2, 4 pre-fusion layers) answers ")


def test_without_a_reference(sweep_folder: SweepFolder) -> None:
    sentences = headline(analyse(sweep_folder("compressor.C=1,2", interrupted=["none-N0-s0"])))
    assert len(sentences) == 1
    assert sentences[0].endswith("% of the test questions, the most of this sweep.")


def test_without_any_run(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder("seed=0", failed={"none-N0-s0": "no"}, interrupted=["query-C1-N4-s0"])
    assert headline(analyse(folder)) == ["No run is finished: 1 failed, 1 did not get to their end."]


def test_differences_in_words() -> None:
    assert compared(Difference(-0.012, -0.021, -0.003)) == (
        f"1.2 points below (95 % interval {MINUS}2.1 to {MINUS}0.3)"
    )
    assert compared(Difference(0.01, -0.001, 0.02)) == f"1.0 point above (95 % interval {MINUS}0.1 to +2.0)"
    assert compared(Difference(0.0001, -0.01, 0.01)) == f"level with (95 % interval {MINUS}1.0 to +1.0)"
