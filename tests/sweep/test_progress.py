"""The lines of progress, by a clock that the test sets."""

import io
import sys

import pytest

from llava_mini.sweep.progress import Progress, print_now
from llava_mini.sweep.text import DASH, MINUS

RESULT = {"accuracy": {"val": 0.9012}}


def test_the_sign_of_a_difference_is_not_lost_to_a_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"{MINUS}1.2 to +0.3, 88.1{DASH}91.0, \u65e5"
    for encoding, shown in (("ascii", r"-1.2 to +0.3, 88.1-91.0, \u65e5"), ("utf-8", line)):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
        print_now(line)
        assert raw.getvalue().decode(encoding) == f"{shown}\n"


def test_lines_count_and_estimate() -> None:
    lines: list[str] = []
    now = [0.0]
    progress = Progress(total=12, missing=10, parallel=2, say=lines.append, clock=lambda: now[0])
    progress.started("a")
    progress.started("b")
    now[0] = 90.0
    progress.failed("b", 90.0, "ValueError: no")
    progress.started("c")
    now[0] = 100.0
    progress.finished("a", 100.0, RESULT)
    # Eight wait or run: seven whole ones and c, of which 10 of 100 s are done; two side by side.
    assert lines == [
        "12 runs: 2 finished before, 10 to run, 2 side by side",
        "[ 2/12] started  a",
        "[ 2/12] started  b",
        "[ 3/12] FAILED   b after 1.5 min: ValueError: no",
        "[ 3/12] started  c",
        "[ 4/12] finished a in 1.7 min, 90.1 % exact match on validation; about 6.6 min left",
    ]


def test_the_last_run_leaves_nothing() -> None:
    lines: list[str] = []
    progress = Progress(total=1, missing=1, parallel=2, say=lines.append, clock=lambda: 0.0)
    progress.started("a")
    progress.finished("a", 12.0, RESULT)
    assert lines[-1] == "[1/1] finished a in 12 s, 90.1 % exact match on validation"
