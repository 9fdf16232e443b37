"""The plots show what they are given: places, intervals, names, too few seeds and what was still improving."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from PIL import Image

from llava_mini.sweep.analysis import analyze
from llava_mini.sweep.plots import against_flops, against_tokens, at_least, by_kind, draw_all, round_numbers, series_of

SweepFolder = Callable[..., Path]
GRAY, MARKERS = "#9ca3af", ("o", "s", "^", "v", "P", "X", "<", ">", "p", "D")


@pytest.fixture
def full(sweep_folder: SweepFolder) -> Path:
    return sweep_folder("compressor=query,avg_pool,zero", "compressor.C=1,2", "fusion.num_layers=0,4", "seed=0,1,2")


def points_of(axes: Axes) -> list[tuple[float, str, str]]:
    """Height, color and face of every large point."""
    points = []
    for line in axes.lines:
        if line.get_marker() in MARKERS and line.get_linestyle() == "None":
            looks = to_hex(line.get_color()), to_hex(line.get_markerfacecolor())
            points += [(round(float(y), 6), *looks) for y in line.get_ydata()]
    return sorted(points)


def test_three_plots_are_written(sweep_folder: SweepFolder, tmp_path: Path) -> None:
    plots = draw_all(analyze(sweep_folder("seed=0,1,2")), tmp_path)
    assert set(plots) == {"accuracy_vs_tokens", "accuracy_vs_flops", "accuracy_by_kind"}
    for path in plots.values():
        with Image.open(path) as image:
            assert image.width > 1000
            assert len(image.convert("RGB").getcolors(1 << 20) or []) > 100


def test_every_group_has_a_panel_and_every_series_is_named_once(full: Path) -> None:
    figure = against_tokens(analyze(full))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Dense answers", "One-word answers"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "none N=0", "zero N=0", "avg_pool N=0", "query N=0", "zero N=4", "avg_pool N=4", "query N=4",
        "small dots: seeds",
    ]  # fmt: skip
    for axes in figure.axes:
        assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "4", "64"]


def test_points_stand_at_their_word_accuracy(sweep_folder: SweepFolder) -> None:
    analysis = analyze(sweep_folder("compressor.C=1,2", "seed=0,1,2"))
    for group, axes in zip(analysis.groups, against_flops(analysis).axes, strict=True):
        values = [round(100 * c.scores[group].mean.value, 6) for c in analysis.configurations]
        assert [value for value, _, _ in points_of(axes)] == sorted(values)
        offsets = [np.asarray(dots.get_offsets()) for dots in axes.collections if isinstance(dots, PathCollection)]
        dots = [float(y) for own in offsets for y in own[:, 1]]
        seeds = [100 * value for c in analysis.configurations for value in c.scores[group].by_seed.values()]
        assert sorted(dots) == pytest.approx(sorted(seeds))


def test_single_seeds_are_gray_points_without_bars_or_lines(sweep_folder: SweepFolder) -> None:
    analysis = analyze(sweep_folder("compressor.C=1,2,4", "seed=0,1", accuracy=lambda run: 0.2 * (run.C or 4)))
    for axes in against_tokens(analysis).axes:
        assert {color for _, color, _ in points_of(axes)} == {GRAY}
        assert not [bars for bars in axes.collections if isinstance(bars, LineCollection)]
        assert not [line for line in axes.lines if line.get_marker() == "None" and len(set(line.get_ydata())) > 1]
    names = [text.get_text() for text in against_tokens(analysis).legends[0].get_texts()]
    assert "gray: too few seeds" in names
    colored = analyze(sweep_folder("compressor.C=1,2,4", "seed=0,1,2", name="three"))
    for axes in against_tokens(colored).axes:
        assert GRAY not in {color for _, color, _ in points_of(axes)}
        assert [bars for bars in axes.collections if isinstance(bars, LineCollection)]


def test_what_was_still_improving_is_hollow(sweep_folder: SweepFolder) -> None:
    folder = sweep_folder("compressor.C=1,2", "seed=0,1,2", training=lambda run: {"converged": run.C != 1})
    analysis = analyze(folder)
    for figure in (against_tokens(analysis), against_flops(analysis)):
        for group, axes in zip(analysis.groups, figure.axes, strict=True):
            hollow = [value for value, color, face in points_of(axes) if face == "#ffffff" != color]
            assert hollow == [round(100 * analysis.configurations[1].scores[group].mean.value, 6)]
        assert "hollow: still improving" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_series_differ_in_color_or_marker(full: Path, sweep_folder: SweepFolder) -> None:
    few = analyze(sweep_folder("compressor=query,avg_pool,zero", "fusion.num_layers=0,1,2,4", name="few"))
    for analysis in (analyze(full), few):
        series = series_of(analysis)
        gray = analysis is few
        assert len({(one.marker, "" if gray else one.color) for one in series}) == min(len(series), 10 if gray else 99)


def test_kinds_have_a_panel_each(full: Path) -> None:
    analysis = analyze(full)
    panels = by_kind(analysis).axes
    assert [axes.get_title(loc="left") for axes in panels] == analysis.kinds
    assert [label.get_text() for label in panels[0].get_yticklabels()] == [
        c.label for c in reversed(analysis.configurations)
    ]


def test_one_run_and_names_that_look_like_formulas_are_drawn(sweep_folder: SweepFolder, tmp_path: Path) -> None:
    draw_all(analyze(sweep_folder(interrupted=["none-N0-s0"], accuracy={"dense": 0.7}, name="one")), tmp_path)
    odd = analyze(sweep_folder("stage.note='$x_{$','<b>\\'&'", accuracy={"dense": 0.7}, name="odd"))
    draw_all(odd, tmp_path)
    names = [text.get_text() for text in against_tokens(odd).legends[0].get_texts()]
    assert r"query N=4, note=\$x_{\$" in names


def test_a_small_range_is_not_blown_up(sweep_folder: SweepFolder) -> None:
    assert at_least(10, 20, 60) == (20, 60)
    assert at_least(10, 50, 52) == (46, 56)
    assert at_least(10, 97, 99) == (91, 101)
    low, high = against_tokens(analyze(sweep_folder("seed=0,1,2", accuracy=1.0))).axes[0].get_ylim()
    assert high - low >= 10


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(80e6, 1.2e9, [1e8, 2e8, 5e8, 1e9]), (3.1e8, 4.2e8, [4e8]), (1.01e6, 1.04e6, [1.01e6])],
)
def test_round_numbers(low: float, high: float, expected: list[float]) -> None:
    numbers = round_numbers(low, high)
    assert all(low <= number <= high for number in numbers)
    assert set(map(round, expected)) <= set(map(round, numbers))
