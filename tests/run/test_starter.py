"""Jobs are forks of one process that has imported what they need, and behave as processes of their own."""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llava_mini.errors import UserError
from llava_mini.run import starter as module
from llava_mini.run.starter import Request, Starter

JOB = """
import heavy, os, sys
print(sys.argv[1], os.environ["X"], os.getpid() == os.getpgid(0), heavy.imported_by == os.getpid(), flush=True)
exec(sys.argv[1])
"""


@pytest.fixture
def starter(tmp_path: Path) -> Iterator[Starter]:
    """A starter to which `python -m job CODE` is known, which imports `heavy`; that writes which process did."""
    (tmp_path / "heavy.py").write_text("import os\nimported_by = os.getpid()\nopen('heavy.txt', 'a').write('once ')")
    (tmp_path / "job.py").write_text(JOB)
    before = os.getcwd()
    os.chdir(tmp_path)
    made = Starter(dict(os.environ))
    os.chdir(before)
    yield made
    made.close()


def started(starter: Starter, folder: Path, code: str, *imports: str, name: str = "log") -> tuple[int, Path]:
    log = folder / f"{name}.txt"
    log.touch()
    return starter.start(Request((sys.executable, "-m", "job", code), {"X": "1"}, log, imports)), log


def ends(starter: Starter, *pids: int) -> dict[int, int]:
    found: dict[int, int] = {}
    deadline = time.monotonic() + 20
    while found.keys() != set(pids):
        assert time.monotonic() < deadline
        found |= dict(starter.ended())
        time.sleep(0.02)
    return found


def test_ctrl_c_while_a_job_starts_leaves_the_others_readable(starter: Starter, tmp_path: Path) -> None:
    """The answer to the start that was interrupted comes later, among what `ended` reads."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    first, _ = started(starter, tmp_path, "0", name="first")
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(1)")
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            started(starter, tmp_path, "0", "slow", name="second")
    finally:
        signal.signal(signal.SIGALRM, before)
    found: dict[int, int] = {}
    deadline = time.monotonic() + 20
    while len(found) < 2:
        assert time.monotonic() < deadline
        found |= dict(starter.ended())
        time.sleep(0.02)
    assert first in found and set(found.values()) == {0}


def test_what_all_jobs_import_is_imported_once(starter: Starter, tmp_path: Path) -> None:
    jobs = [started(starter, tmp_path, f"print({n})", "heavy", name=str(n)) for n in range(3)]
    assert set(ends(starter, *(pid for pid, _ in jobs)).values()) == {0}
    for n, (_, log) in enumerate(jobs):
        assert log.read_text() == f"print({n}) 1 True False\n{n}\n"
    assert (tmp_path / "heavy.txt").read_text() == "once "
    pid, log = started(starter, tmp_path, "print(4)")  # as on a GPU, which no fork can use: a process of its own
    assert ends(starter, pid) == {pid: 0} and log.read_text().splitlines()[0] == "print(4) 1 True True"


@pytest.mark.parametrize("imports", [("heavy",), ()])
@pytest.mark.parametrize(
    ("code", "status", "last"),
    [
        ("sys.exit(7)", 7, ""),
        ("sys.exit('why')", 1, "why"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("import atexit; atexit.register(print, 'at the end')", 0, "at the end"),
        ("os.kill(os.getpid(), 9)", -9, ""),
        ("import nothing_like_it", 1, "ModuleNotFoundError: No module named 'nothing_like_it'"),
    ],
)
def test_a_job_ends_as_a_process_of_its_own_would(
    starter: Starter, tmp_path: Path, imports: tuple[str, ...], code: str, status: int, last: str
) -> None:
    pid, log = started(starter, tmp_path, code, *imports)
    assert ends(starter, pid) == {pid: status}
    assert log.read_text().splitlines()[-1].endswith(last)


def test_a_module_that_cannot_be_imported_is_reported_by_the_job(starter: Starter, tmp_path: Path) -> None:
    (tmp_path / "heavy.py").write_text("raise RuntimeError('no library')")
    pid, log = started(starter, tmp_path, "print(1)", "heavy", "not_there")
    assert ends(starter, pid) == {pid: 1} and log.read_text().endswith("RuntimeError: no library\n")


def test_a_program_that_is_not_there_ends_as_an_error(starter: Starter, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.touch()
    pid = starter.start(Request(("/no/such/program",), {}, log, ("heavy",)))
    assert ends(starter, pid) == {pid: 1} and "No such file" in log.read_text()


def test_a_job_with_other_threads_about_is_no_fork(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    executed: list[str] = []
    monkeypatch.setattr(os, "execvp", lambda program, _arguments: executed.append(program))
    monkeypatch.setattr(runpy, "run_module", lambda *_arguments, **_keywords: executed.append("fork"))
    request = Request((sys.executable, "-m", "job"), {}, tmp_path / "log.txt", ("heavy",))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    module._become(request)
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    module._become(request)
    assert executed == ["fork", sys.executable]


@pytest.mark.parametrize("when", ["before", "while a job runs"])
def test_a_starter_that_dies_is_an_error_in_one_line(starter: Starter, tmp_path: Path, when: str) -> None:
    pid = 0
    if when != "before":
        pid, log = started(starter, tmp_path, "import time; time.sleep(60)", "heavy")
        wait_for(lambda: log.read_text() != "")
    starter._process.send_signal(signal.SIGKILL)
    starter._process.wait()
    with pytest.raises(UserError, match="^the process that starts the runs was killed by SIGKILL, and its runs ended"):
        list(starter.ended()) if pid else started(starter, tmp_path, "print(1)", "heavy")
    wait_for(lambda: not pid or not Path(f"/proc/{pid}").exists())


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)
