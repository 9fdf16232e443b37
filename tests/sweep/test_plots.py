"""The plots show what they are given: places, intervals, names; nothing overlaps where it can be told."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from llava_mini.sweep.analysis import analyse
from llava_mini.sweep.plots import against_flops, against_tokens, by_kind, draw_all, round_numbers, spread

SweepFolder = Callable[..., Path]


@pytest.fixture
def full(sweep_folder: SweepFolder) -> Path:
    return sweep_folder("compressor=query,avg_pool,zero", "compressor.C=1,2", "fusion.num_layers=0,4", "seed=0,1")


def texts_of(axes: object) -> list[str]:
    return [text.get_text() for text in axes.texts]  # type: ignore[attr-defined]


def test_three_pictures_are_written(full: Path, tmp_path: Path) -> None:
    pictures = draw_all(analyse(full), tmp_path)
    assert set(pictures) == {"accuracy_vs_tokens", "accuracy_vs_flops", "accuracy_by_kind"}
    for path in pictures.values():
        with Image.open(path) as picture:
            assert picture.width > 1000
            assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 100


def test_every_series_is_named_once(full: Path) -> None:
    axes = against_tokens(analyse(full)).axes[0]
    assert sorted(texts_of(axes)) == [
        "avg_pool N=0", "avg_pool N=4", "none N=0", "query N=0", "query N=4", "zero N=0", "zero N=4",
    ]  # fmt: skip
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "4", "64"]


def test_points_stand_at_their_accuracy(sweep_folder: SweepFolder) -> None:
    analysis = analyse(sweep_folder("compressor.C=2", "seed=0,1"))
    axes = against_flops(analysis).axes[0]
    drawn = sorted(round(float(y), 6) for line in axes.lines for y in line.get_ydata() if line.get_marker() == "o")
    assert drawn == sorted(round(100 * c.accuracy.value, 6) for c in analysis.configurations)


def test_kinds_have_a_panel_each(full: Path) -> None:
    analysis = analyse(full)
    panels = by_kind(analysis).axes
    assert [axes.get_title(loc="left") for axes in panels] == analysis.kinds
    assert [label.get_text() for label in panels[0].get_yticklabels()] == [
        c.label for c in reversed(analysis.configurations)
    ]


def test_one_run_and_names_that_look_like_formulas_are_drawn(sweep_folder: SweepFolder, tmp_path: Path) -> None:
    draw_all(analyse(sweep_folder(interrupted=["none-N0-s0"], name="one")), tmp_path)
    odd = analyse(sweep_folder("stage.note='$x_{$','<b>\\'&'", name="odd"))
    draw_all(odd, tmp_path)
    assert r"query N=4, note=\$x_{\$" in texts_of(against_tokens(odd).axes[0])


def test_spread_moves_labels_apart_and_keeps_them_inside() -> None:
    assert spread([1.0, 5.0], 1.0, 10.0) == [1.0, 5.0]
    assert spread([1.0, 1.2, 5.0], 1.0, 10.0) == [1.0, 2.0, 5.0]
    assert spread([9.0, 9.5, 9.6], 1.0, 10.0) == [8.0, 9.0, 10.0]
    assert spread([], 1.0, 10.0) == []


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(80e6, 1.2e9, [1e8, 2e8, 5e8, 1e9]), (3.1e8, 4.2e8, [4e8]), (1.01e6, 1.04e6, [1.01e6])],
)
def test_round_numbers(low: float, high: float, expected: list[float]) -> None:
    numbers = round_numbers(low, high)
    assert all(low <= number <= high for number in numbers)
    assert set(map(round, expected)) <= set(map(round, numbers))
