"""The lines of progress, by a clock that the test sets."""

from llava_mini.sweep.progress import Progress

RESULT = {"accuracy": {"val": 0.9012}}


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
