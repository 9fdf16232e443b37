"""Single changes: pairs of configurations that differ in one value."""

from collections.abc import Callable
from pathlib import Path

import pytest

from llava_mini.sweep.analysis import analyze

SweepFolder = Callable[..., Path]


def test_single_changes(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder(
        "compressor=query,avg_pool,zero",
        "compressor.C=1,2,4",
        "fusion.num_layers=0,2",
        "seed=0,1,2",
        accuracy=lambda run: 0.5 + 0.1 * (run.C or 0) if run.n_fusion else 0.3,
    )
    analysis = analyze(folder)
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
    assert raised.differences["dense"].value == pytest.approx(0.2, abs=0.05)
    assert raised.differences["dense"].clear
    assert (raised.lower.label, raised.upper.label) == ("query C=2, N=2", "query C=4, N=2")


def test_p_values_are_corrected_for_the_changes_of_one_value(sweep_folder: SweepFolder) -> None:
    analysis = analyze(sweep_folder("compressor.C=1,2,4,8", "fusion.num_layers=0,4", "seed=0,1,2", accuracy=0.6))
    for key, count in (("C", 6), ("N", 4)):
        made = [change.differences["dense"] for change in analysis.changes if change.key == key]
        assert len(made) == count
        p, corrected_p = min((difference.p or 0.0, difference.corrected_p) for difference in made)
        assert corrected_p == pytest.approx(min(1, count * p))


def test_other_values_are_changes_too(sweep_folder: SweepFolder) -> None:
    analysis = analyze(sweep_folder("fusion.init=copy,random", "trainer.max_steps=9,10,100"))
    shown = [(c.key, c.before, c.after, c.at) for c in analysis.changes if c.at.startswith("query")]
    assert shown == [
        ("fusion.init", "copy", "random", "query C=1, N=4, max_steps=9"),
        ("fusion.init", "copy", "random", "query C=1, N=4, max_steps=10"),
        ("fusion.init", "copy", "random", "query C=1, N=4, max_steps=100"),
        ("trainer.max_steps", "9", "10", "query C=1, N=4, init=copy"),
        ("trainer.max_steps", "10", "100", "query C=1, N=4, init=copy"),
        ("trainer.max_steps", "9", "10", "query C=1, N=4, init=random"),
        ("trainer.max_steps", "10", "100", "query C=1, N=4, init=random"),
    ]
