"""The page's tables: bold is what is clear, gray what has too few seeds, and bars hold what they show."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llava_mini.sweep.analysis import analyze
from llava_mini.sweep.statistics import Difference, Estimate
from llava_mini.sweep.tables import TEMPLATES, Bars, changes_tables, configurations_table, kinds_tables, runs_table

SweepFolder = Callable[..., Path]
MACROS: Any = TEMPLATES.get_template("tables.jinja").module


def looks(html: str) -> list[str]:
    return re.findall(r'class="difference (\w+)"', html)


def test_only_what_stays_clear_after_correction_is_bold() -> None:
    bars = Bars([])
    for size, p, look in ((0.02, 0.01, "more"), (-0.02, 0.01, "less"), (0.02, 0.06, "none")):
        cell = MACROS.difference(Difference(size, (size - 0.01, size + 0.01), p=0.01, corrected_p=p), bars)
        assert looks(cell) == [look]
    assert MACROS.difference(Difference(0.3), bars) == '<td class="difference few">+30.0</td>'
    assert MACROS.value(Estimate(0.5)) == "<span class=few>50.0</span>"


def test_bars_hold_their_dots_and_point_to_what_lies_beyond() -> None:
    differences = [Difference(-0.6, (-0.7, -0.5)), Difference(0.05, (-0.02, 0.1)), Difference(0.4, (0.1, 0.7))]
    bars = Bars(differences)
    cells = [MACROS.difference(difference, bars) for difference in differences]
    places = [float(number) for cell in cells for number in re.findall(r"([\d.]+)%", cell)]
    assert len(places) == 12
    assert all(0 <= place <= 100 for place in places)
    assert ["beyond left" in cell for cell in cells] == [True, False, False]
    assert ["beyond right" in cell for cell in cells] == [False, False, True]
    assert bars.note == "A triangle is beyond the scale of 15 points."
    assert Bars(differences[1:2]).note == ""


def test_the_number_of_comparisons_is_that_of_a_column(sweep_folder: SweepFolder) -> None:
    analysis = analyze(sweep_folder("compressor=query,zero", "compressor.C=1,2,4", "seed=0,1,2", accuracy=0.7))
    html = configurations_table(analysis)
    assert html.count("to uncompressed, points (4 comparisons)") == 2
    assert "Intervals are 95 %, each by itself, not corrected." in html
    differences = [score.difference for c in analysis.configurations for score in c.scores.values() if score.difference]
    assert [look in ("more", "less") for look in looks(html)] == [d.clear for d in differences]
    changes = changes_tables(analysis)
    assert "Dense answers, points (3 comparisons)" in changes
    assert "One-word answers, points (3 comparisons)" in changes


def test_what_has_too_few_common_seeds_is_gray_and_not_counted(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder("compressor.C=1,2", "seed=0,1,2", interrupted=["query-C1-N4-s0"], accuracy={"dense": 0.7})
    html = configurations_table(analyze(folder))
    assert sorted(looks(html)) == ["few", "none"]
    assert "(1 comparison)" in html
    assert "Gray: fewer than 3 common seeds, which show no difference." in html


def test_one_seed_has_no_column_of_comparisons(sweep_folder: SweepFolder) -> None:
    analysis = analyze(sweep_folder("compressor.C=1,2", accuracy=lambda run: 0.9 if run.reference else 0.2))
    for html in (configurations_table(analysis), changes_tables(analysis)):
        assert set(looks(html)) == {"few"}
        assert "comparison" not in html
        assert "track" not in html


def test_marks_stand_beside_the_configuration_and_the_run(sweep_folder: SweepFolder) -> None:
    def training(run: object) -> dict[str, object]:
        return {"converged": False, "gained_last_third": 0.031} if "query" in str(run) else {}

    analysis = analyze(sweep_folder("seed=0,1,2", training=training))
    rows = re.findall(r"<tr.*?</tr>", configurations_table(analysis))
    marked = [re.findall(r'<span class="mark">(.*?)</span>', row) for row in rows]
    assert marked == [[], [], ["still improving: +3.1 points on dense answers in the last third"]]
    runs = re.findall(r"<tr>.*?</tr>", runs_table(analysis))[1:]
    assert ["<td>no</td>" in row for row in runs] == ["query" in row for row in runs]
    assert all(("+3.1<small>± 0.4</small>" in row) == ("query" in row) for row in runs)


def test_kinds_have_three_tables(sweep_folder: SweepFolder) -> None:
    analysis = analyze(sweep_folder("compressor.C=1", "seed=0,1,2"))
    html = kinds_tables(analysis)
    for title in ("Words right, %", "Exact match: the whole answer right, %", "Negative log-likelihood, nats per word"):
        assert f"<summary>{title}</summary>" in html
    assert html.count("<th scope=col>objects</th>") == 3
    assert f"<td>{analysis.configurations[0].nll_by_kind['objects']:.2f}</td>" in html
