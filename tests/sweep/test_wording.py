"""How sentences name configurations and differences."""

from collections.abc import Callable
from pathlib import Path

from llava_mini.sweep.analysis import analyze
from llava_mini.sweep.statistics import Difference
from llava_mini.sweep.wording import clauses, listed, name, sentence, span, step, where, with_intervals

SweepFolder = Callable[..., Path]
MINUS = "\N{MINUS SIGN}"


def test_names_leave_out_what_all_have_in_common(sweep_folder: SweepFolder) -> None:
    analysis = analyze(sweep_folder("compressor=query,zero", "compressor.C=1,2"))
    assert [name(analysis, c) for c in analysis.configurations] == ["none", "zero", "query C=1", "query C=2"]
    assert name(analysis, analysis.configurations[2], without=("C",)) == "query"
    depths = analyze(sweep_folder("fusion.num_layers=2,4", "trainer.max_steps=8,9", name="depths"))
    assert [name(depths, c) for c in depths.configurations][:3] == [
        "none N=0 max_steps=8", "query N=2 max_steps=8", "query N=4 max_steps=8",
    ]  # fmt: skip


def test_an_uncompressed_configuration_is_not_named_like_the_reference(sweep_folder: SweepFolder) -> None:
    analysis = analyze(sweep_folder("compressor=none,query", "compressor.C=1"))
    assert [name(analysis, c) for c in analysis.configurations] == ["none N=0", "none N=4", "query C=1 N=4"]


def test_a_place_names_setting_budget_and_group_as_far_as_needed(sweep_folder: SweepFolder) -> None:
    done = analyze(sweep_folder("compressor.C=1", accuracy={"dense": 0.5}))
    assert where(done, "dense", done.configurations[0], done.configurations) == ""
    going = analyze(sweep_folder("trainer.max_steps=8,9", training={"converged": False}, name="going"))
    assert where(going, "one_word", going.configurations[0], going.configurations[:2]) == (
        "with max_steps=8, after 8 steps from a common start, on one-word answers"
    )


def test_lists_end_where_they_grow_long(sweep_folder: SweepFolder) -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed([str(index) for index in range(8)]) == "0, 1, 2, 3, 4, 5 and 2 more"
    analysis = analyze(sweep_folder("compressor.C=1,2"))
    found = [
        (c, Difference(value, (value - 0.01, value + 0.01)))
        for c, value in zip(analysis.configurations[1:], (-0.1, 0.02), strict=True)
    ]
    shown = with_intervals(analysis, found)
    assert shown == (
        f"(points, 95 % interval): query C=1 {MINUS}10.0 ({MINUS}11.0 to {MINUS}9.0), query C=2 +2.0 (+1.0 to +3.0)"
    )
    assert with_intervals(analysis, found * 4) == f"8 configurations ({MINUS}10.0 to +2.0 points)"
    assert clauses(["first", f"below {shown}", f"above {shown}"]).count("95 % interval") == 1
    assert f"; above: query C=1 {MINUS}10.0" in clauses([f"below {shown}", f"above {shown}"])


def test_steps_and_sentences() -> None:
    assert step(Difference(0.121, corrected_p=0.01)) == "+12.1 points (clear)"
    assert step(Difference(-0.02, corrected_p=0.06)) == f"{MINUS}2.0 points (not clear)"
    assert span([Difference(0.01), Difference(-0.2)]) == f"{MINUS}20.0 to +1.0 points"
    assert sentence("", "on dense answers", "query wins") == "On dense answers query wins."
