"""The report's first sentences, for sweeps whose outcome is known: what they claim, and what they do not."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llava_mini.sweep.analysis import analyze
from llava_mini.sweep.findings import headline
from llava_mini.sweep.grid import Run
from llava_mini.sweep.report import compare
from llava_mini.sweep.seed_spread import few_seeds

SweepFolder = Callable[..., Path]
MINUS = "\N{MINUS SIGN}"
DEFAULT = ("compressor=query,zero", "compressor.C=1,2,4,8")
# Words that say which of two is better.
CLAIMS = re.compile(
    r"\b(better|worse|best|worst|most|more|less|above|below|higher|lower|clear\w*|help\w*|adds|raise|wins?|costs?)\b"
)
CONVERGED = "No run is marked as still improving over the last third of its steps."


def graded(run: Run) -> dict[str, float]:
    """As in the toy world: long answers need tokens, one-word answers do not."""
    of_tokens = {1: 0.45, 2: 0.6, 4: 0.75, 8: 0.9}
    dense = 0.9 if run.reference else 0.3 if run.C is None else of_tokens[run.C]
    return {"dense": dense, "one_word": 0.85}


def improving(run: Run) -> dict[str, Any]:
    """With one token a run still improves, without any that cannot be told."""
    if run.C == 1:
        return {"converged": False, "gained_last_third": 0.031}
    return {"converged": False, "gained_last_third": None, "gain_noise": None} if run.compressor == "zero" else {}


def test_what_compression_costs_and_whether_tokens_help(sweep_folder: SweepFolder) -> None:
    reference, control, tokens, one_word, trained = headline(
        analyze(sweep_folder(*DEFAULT, "seed=0,1,2", accuracy=graded))
    )
    assert re.match(r"On dense answers the uncompressed reference gets \d\d\.\d % of the words right; ", reference)
    below, level = reference.split("; ")[1:]
    assert below.startswith(f"clearly below it (points, 95 % interval): query C=1 {MINUS}4")
    assert re.findall(r"C=\d", below) == ["C=1", "C=2", "C=4"]
    assert re.findall(r"C=\d", level) == ["C=8"]
    assert level.startswith("cannot be told from it: query C=8 ")
    assert control.startswith("Without any vision token (zero) ")
    assert "clearly below the reference (" + MINUS in control
    assert re.search(r"; from there to query C=1 \+1\d\.\d points \(clear\)\.$", control)
    assert re.match(r"More tokens help query: C=1 to 2 \+1\d\.\d points \(clear\), C=2 to 4 ", tokens)
    assert one_word.startswith("On one-word answers the uncompressed reference gets 8")
    assert "none of the 5 others, the control without tokens among them, can be told from it" in one_word
    assert trained == CONVERGED


@pytest.mark.parametrize(("seeds", "count"), [("seed=0", 1), ("seed=0,1", 2)])
def test_one_or_two_seeds_claim_nothing(sweep_folder: SweepFolder, seeds: str, count: int) -> None:
    folder = sweep_folder(*DEFAULT, seeds, accuracy=graded)  # differences of 60 points
    first, *others = headline(analyze(folder))
    assert first == few_seeds(count, ["dense", "one_word"])
    assert "mean nothing" in first
    assert others == [CONVERGED]
    lines: list[str] = []
    page = compare(folder, lines.append).read_text()
    assert first in lines
    told = "\n".join(line for line in lines if line not in (first, CONVERGED))
    assert not CLAIMS.search(told)
    assert "*" not in told
    assert " to +" not in told
    assert f" to {MINUS}" not in told
    assert not re.search(r'class="difference (more|less|none)"', page)
    assert 'class="difference few"' in page
    words = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)
    shown = words.split("What the figures mean", 1)[0].replace(first, "").replace(CONVERGED, "")
    assert not CLAIMS.search(shown.replace("fewer than 3 common seeds", ""))


def test_what_was_still_improving_is_said_of_its_budget(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder(*DEFAULT, "seed=0,1,2", "trainer.max_steps=300", accuracy=graded, training=improving)
    reference, control, tokens, one_word, trained = headline(analyze(folder))
    assert reference.startswith("After 300 steps from a common start, on dense answers ")
    assert one_word.startswith("After 300 steps from a common start, on one-word answers ")
    assert " of the words are right within this budget, " in control
    assert tokens.startswith("More tokens help query within this budget: "), "C=1 may yet reach C=2"
    assert trained == (
        "These are figures of a budget (300 steps from a common start), not of what a configuration can do: "
        "zero (not shown to have converged), "
        "query C=1 (still improving: +3.1 points on dense answers in the last third)."
    )


def test_the_marks_are_said_with_one_seed_too(sweep_folder: SweepFolder) -> None:
    assert "query C=1 (still improving: +3.1 points on dense answers in the last third)" in headline(
        analyze(sweep_folder(*DEFAULT, "seed=0", accuracy=graded, training=improving))
    )[1]  # fmt: skip


def test_at_100_percent_nothing_is_told_apart(sweep_folder: SweepFolder) -> None:
    def accuracy(run: Run) -> dict[str, float]:
        return {"dense": graded(run)["dense"], "one_word": 1.0 if run.reference or run.C == 8 else 0.9}

    sentences = headline(analyze(sweep_folder(*DEFAULT, "seed=0,1,2", accuracy=accuracy)))
    ceiling = [index for index, sentence in enumerate(sentences) if "one-word" in sentence]
    assert sentences[ceiling[0]] == (
        "On one-word answers this sweep cannot tell configurations apart: "
        "the uncompressed reference is at the ceiling (100.0 %)."
    )
    assert sentences[ceiling[0] + 1].startswith("All the same clearly below it (points, 95 % interval): ")
    assert "C=8" not in sentences[ceiling[0] + 1]


def test_within_a_point_of_each_other_nothing_is_told_apart(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder(*DEFAULT, "seed=0,1,2", accuracy={"dense": 0.9})
    ceiling, trained = headline(analyze(folder))
    assert re.fullmatch(
        r"This sweep cannot tell configurations apart: "
        r"all are within 1 point of the uncompressed reference \(\d\d\.\d %\)\.",
        ceiling,
    )
    assert trained == CONVERGED


def test_one_seed_at_the_ceiling_says_both(sweep_folder: SweepFolder) -> None:
    few, ceiling, _ = headline(analyze(sweep_folder(*DEFAULT, "seed=0", accuracy={"dense": 1.0})))
    assert few == few_seeds(1, ["dense"])
    assert ceiling.startswith("This sweep cannot tell configurations apart: ")


def test_noise_is_not_called_a_difference(sweep_folder: SweepFolder) -> None:
    def accuracy(run: Run) -> float:
        return 0.7 + 0.03 * (((run.C or 0) + run.reference + run.seed * 7) % 3 - 1)

    for sentence in headline(analyze(sweep_folder(*DEFAULT, "seed=0,1,2", accuracy=accuracy))):
        assert "clearly" not in sentence
        assert "(clear)" not in sentence
        assert "help" not in sentence or sentence.startswith("Whether more tokens help query cannot be told: ")


def test_a_compressed_one_that_is_clearly_above_is_called_so(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder("seed=0,1,2", accuracy=lambda run: 0.5 if run.reference else 0.8)
    assert "; clearly above it (points, 95 % interval): query +2" in headline(analyze(folder))[0]


def test_what_has_too_few_common_seeds_is_named_apart(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder(*DEFAULT, "seed=0,1,2", accuracy=graded, interrupted=["query-C1-N4-s0", "zero-N4-s1"])
    first, control, *_ = headline(analyze(folder))
    assert first.endswith("; not compared, for fewer than 3 common seeds: query C=1.")
    assert re.fullmatch(r"Without any vision token \(zero\) \d\d\.\d % of the words are right\.", control)


def test_every_setting_has_a_sentence_of_its_own_or_they_are_counted(sweep_folder: SweepFolder) -> None:
    few = headline(analyze(sweep_folder("compressor.C=1,2", "trainer.max_steps=8,9", "seed=0,1,2", accuracy=graded)))
    assert [sentence.partition(", on")[0] for sentence in few[:2]] == ["With max_steps=8", "With max_steps=9"]
    many = sweep_folder("compressor.C=1,8", "trainer.max_steps=6,7,8,9", "seed=0,1,2", accuracy=graded, name="many")
    assert headline(analyze(many))[0] == (
        "On dense answers 4 of 8 comparisons find a configuration clearly below the uncompressed reference of its "
        "setting and 0 clearly above it; 4 cannot tell them apart."
    )


def test_many_configurations_are_counted(sweep_folder: SweepFolder) -> None:
    arguments = ("compressor=query,avg_pool,zero", "compressor.C=1,2,4,8", "fusion.num_layers=0,4", "seed=0,1,2")
    first, controls, tokens, *_ = headline(analyze(sweep_folder(*arguments, accuracy=graded)))
    assert f"clearly below it 12 configurations ({MINUS}4" in first
    assert controls.startswith("Without any vision token, of the words are right: zero N=0 ")
    assert controls.endswith("; 2 of these 2 are clearly below the reference, 0 above.")
    assert tokens == (
        "On dense answers 12 of 12 steps to more tokens clearly raise word accuracy, 0 clearly lower it; "
        "of 0 it cannot be told."
    )


def test_without_a_reference(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder(
        "compressor.C=1,2", "seed=0,1,2", interrupted=[f"none-N0-s{s}" for s in range(3)], accuracy=graded
    )
    first, tokens, _ = headline(analyze(folder))
    assert first == "No run of the uncompressed reference is finished, so nothing is compared with it."
    assert tokens.startswith("More tokens help query: C=1 to 2 +1")


def test_without_any_run(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder("seed=0", failed={"none-N0-s0": "no"}, interrupted=["query-C1-N4-s0"])
    assert headline(analyze(folder)) == ["No run is finished: 1 failed, 1 did not get to their end."]


def test_a_control_is_compared_with_a_reference_within_its_budget(sweep_folder: SweepFolder) -> None:
    def training(run: Run) -> dict[str, Any]:
        return {"converged": False, "gained_last_third": 0.031} if run.reference else {}

    folder = sweep_folder("compressor=query,zero", "seed=0,1,2", accuracy=graded, training=training)
    assert " of the words are right within this budget, clearly below the reference " in headline(analyze(folder))[1]
    folder = sweep_folder(
        "compressor=zero", "fusion.num_layers=2,4", "seed=0,1,2", accuracy=graded, training=training, name="controls"
    )
    assert headline(analyze(folder))[1].startswith("Without any vision token within this budget, of the words are ")


def test_a_setting_without_its_reference_is_named(sweep_folder: SweepFolder) -> None:
    interrupted = [f"none-N0-max_steps=9-s{seed}" for seed in range(3)]
    folder = sweep_folder("trainer.max_steps=8,9", "seed=0,1,2", accuracy=graded, interrupted=interrupted)
    first, second, *_ = headline(analyze(folder))
    assert first == (
        "No run of the uncompressed reference is finished with max_steps=9, so nothing is compared with it there."
    )
    assert second.startswith("With max_steps=8, on dense answers ")


def test_seeds_that_are_not_common_are_not_denied(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder("seed=0,1,2", accuracy=graded, interrupted=["none-N0-s1", "none-N0-s2"])
    lines: list[str] = []
    page = compare(folder, lines.append).read_text()
    assert few_seeds(1, ["dense", "one_word"], in_common=True) in lines
    assert "there are no intervals" not in page, "the compressed configuration has one"


def test_why_the_same_seeds_are_not_compared(sweep_folder: SweepFolder) -> None:
    def accuracy(run: Run) -> dict[str, float]:
        return {"one_word": 0.8} if run.C == 1 else graded(run)

    folder = sweep_folder("compressor.C=1,2", "seed=0,1,2", accuracy=accuracy)
    lines: list[str] = []
    page = compare(folder, lines.append).read_text()
    assert any("; not compared, for fewer than 3 common seeds with the same questions: query C=1." in x for x in lines)
    assert "<td>not compared</td>" in page and "no common seed" not in page


def test_columns_without_a_comparison_are_not_counted(sweep_folder: SweepFolder) -> None:
    def accuracy(run: Run) -> dict[str, float]:
        return {"one_word": 0.8} if run.seed == 1 else graded(run)

    lines: list[str] = []
    compare(sweep_folder("seed=0,1,2", accuracy=accuracy), lines.append)
    assert any("after Holm's correction for the 1 comparison of a table." in line for line in lines)
