"""Processes that train together begin together and end together, and one of them says why."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llava_mini.run.ranks import own_rank, run_ranks

FIND = "import os, sys, time; rank = int(os.environ['LOCAL_RANK']); "


def python(code: str) -> list[str]:
    return [sys.executable, "-c", FIND + code]


def wait_for(what: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_ranks_know_their_number_and_where_to_meet_and_only_rank_0_speaks(tmp_path: Path, capfd, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    names = ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
    assert run_ranks(python(f"print(rank, *(os.environ[name] for name in {names}))"), 3, tmp_path / "run") == 0
    said = [capfd.readouterr().out, *((tmp_path / "run" / f"log.rank{rank}.txt").read_text() for rank in (1, 2))]
    assert [line.split()[:3] for line in said] == [[str(rank), "3", "127.0.0.1"] for rank in range(3)]
    assert len({tuple(line.split()[1:]) for line in said}) == 1
    assert said[0].split()[-1] == "1"


def test_a_process_knows_whether_it_is_a_rank(monkeypatch: pytest.MonkeyPatch):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert own_rank() is None
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert own_rank() == 1
    monkeypatch.setenv("RANK", "5")  # torchrun on several machines
    assert own_rank() == 5


WAIT = "open(sys.argv[1] + str(rank), 'w').write(str(os.getpid())); time.sleep(600)"


@pytest.mark.parametrize(
    ("code", "status", "told"),
    [
        ("rank == 1 and sys.exit('RuntimeError: no memory')", 1, "rank 1 of 3 ended with status 1; "),
        ("rank == 2 and os.kill(os.getpid(), 9)", 137, "rank 2 of 3 was killed by SIGKILL; see "),
        ("rank == 0 and os.kill(os.getpid(), 9)", 137, "rank 0 of 3 was killed by SIGKILL\n"),
        ("rank == 0 and sys.exit(3)", 3, ""),  # rank 0 speaks for itself
    ],
)
def test_when_one_fails_all_end_and_it_is_reported(tmp_path: Path, capfd, code: str, status: int, told: str):
    begin = time.monotonic()
    assert run_ranks(python(f"{code}; time.sleep(600)"), 3, tmp_path) == status
    assert time.monotonic() - begin < 20
    said = capfd.readouterr().err
    assert said.startswith(f"llava-mini: {told}" if told else "")
    assert len(said.splitlines()) == bool(told)
    if status == 1:
        assert said.endswith("log.rank1.txt ends with: RuntimeError: no memory\n")


@pytest.mark.parametrize(("ranks", "before", "after"), [("{0, 1}", 0.5, 0), ("{0, 1}", 0, 1), ("{1}", 0, 0)])
def test_a_mistake_that_ranks_find_is_one_line_on_the_terminal(
    tmp_path: Path, capfd, monkeypatch: pytest.MonkeyPatch, ranks: str, before: float, after: float
):
    """However long rank 0 takes before it prints the line, or to shut down after it."""
    if ranks == "{1}":  # nothing comes of rank 0, so all of the time is waited
        monkeypatch.setattr("llava_mini.run.ranks._SECONDS_FOR_RANK_0", 0.5)
    said = (
        f"print('llava-mini: no weights', file=sys.stderr, flush=True), time.sleep({after} * (rank == 0)), sys.exit(2)"
    )
    code = f"time.sleep({before} * (rank == 0)); rank in {ranks} and ({said}); time.sleep(600)"
    assert run_ranks(python(code), 2, tmp_path) == 2
    assert capfd.readouterr().err == "llava-mini: no weights\n"


def test_a_rank_that_ignores_signals_ends_at_once_with_the_others(tmp_path: Path, capfd):
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    begin = time.monotonic()
    assert run_ranks(python(f"{deaf}; rank == 1 and (time.sleep(0.5), sys.exit(3)); time.sleep(600)"), 2, tmp_path) == 3
    assert time.monotonic() - begin < 20
    assert capfd.readouterr().err.startswith("llava-mini: rank 1 of 2 ended with status 3; ")


START = """
import sys
from pathlib import Path
from llava_mini.run.ranks import run_ranks
try:
    sys.exit(run_ranks(sys.argv[2:], 2, Path(sys.argv[1])))
except KeyboardInterrupt:
    sys.exit("interrupted")
"""


def started(folder: Path, code: str) -> tuple[subprocess.Popen[str], list[int]]:
    """A process that runs two ranks, in a process group of its own, and their pids."""
    folder.mkdir()
    command = [sys.executable, "-c", START, str(folder), *python(code), f"{folder}/pid"]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    files = [folder / f"pid{rank}" for rank in range(2)]
    wait_for(lambda: all(file.exists() and file.read_text() for file in files))
    return process, [int(file.read_text()) for file in files]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux does this")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_ranks_end_with_the_process_that_started_them(tmp_path: Path, number: signal.Signals):
    process, ranks = started(tmp_path / "run", WAIT)
    assert all(map(is_running, ranks))
    process.send_signal(number)
    assert process.wait(20) == (-number if number == signal.SIGKILL else 128 + number)
    wait_for(lambda: not any(map(is_running, ranks)), seconds=5)


ORDERLY = (
    "import signal; rank and signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    f"try:\n {WAIT}\n"
    "except KeyboardInterrupt:\n"
    " signal.signal(signal.SIGINT, signal.SIG_IGN); open(sys.argv[1] + 'ended', 'w'); sys.exit(130)"
)


@pytest.mark.parametrize("whole_group", [True, False])
def test_after_ctrl_c_rank_0_ends_in_order_and_then_all_have_ended(tmp_path: Path, whole_group: bool):
    process, ranks = started(tmp_path / "run", ORDERLY)
    if whole_group:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 1 and said == "interrupted\n"
    assert (tmp_path / "run" / "pidended").exists()
    assert not any(map(is_running, ranks))
