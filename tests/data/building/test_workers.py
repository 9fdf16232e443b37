"""Tasks are done once each, by several processes; those end with the one that started them, however it ends."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from llava_mini.data.building.workers import Report, WorkerDiedError, run_tasks


def note(task: int, report: Report) -> None:
    report((task, os.getpid()))


def fail(task: int, report: Report) -> None:
    if task == 2:
        raise KeyError("the culprit")


def die(task: int, report: Report) -> None:
    if task == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    report(task)


def leave(task: int, report: Report) -> None:
    os._exit(7)


def sleep(task: int, report: Report) -> None:
    report(os.getpid())
    time.sleep(60)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_task_is_done_once(workers: int) -> None:
    seen: list[Any] = []
    run_tasks(note, range(10), workers, seen.append)
    assert sorted(task for task, _ in seen) == list(range(10))
    processes = {process for _, process in seen}
    assert processes == {os.getpid()} if workers == 1 else os.getpid() not in processes


def test_no_task_is_nothing_to_do() -> None:
    run_tasks(note, [], 4, pytest.fail)


def test_an_exception_comes_back_with_its_traceback() -> None:
    with pytest.raises(KeyError, match="the culprit") as caught:
        run_tasks(fail, range(4), 2, lambda value: None)
    assert "In the process of task 2" in caught.value.__notes__[0] and "in fail" in caught.value.__notes__[0]


@pytest.mark.parametrize(("work", "cause"), [(die, "killed by SIGKILL"), (leave, "exit status 7")])
def test_a_process_that_dies_is_named_with_its_task(work: Any, cause: str) -> None:
    with pytest.raises(WorkerDiedError) as caught:
        run_tasks(work, range(2), 2, lambda value: None)
    assert caught.value.cause == cause
    assert work is leave or caught.value.task == 1


def gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def until_gone(processes: list[int]) -> None:
    deadline = time.monotonic() + 30
    while not all(map(gone, processes)):
        assert time.monotonic() < deadline, processes
        time.sleep(0.02)


def test_ctrl_c_ends_all_processes() -> None:
    processes: list[int] = []

    def interrupt(process: int) -> None:
        processes.append(process)
        if len(processes) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tasks(sleep, range(4), 2, interrupt)
    assert all(map(gone, processes))


def test_started_from_any_thread() -> None:
    seen: list[Any] = []
    thread = threading.Thread(target=run_tasks, args=(note, range(2), 2, seen.append))
    thread.start()
    thread.join()
    assert sorted(task for task, _ in seen) == [0, 1]


PARENT = """
import sys
sys.path.insert(0, {folder!r})
import test_workers
from llava_mini.data.building.workers import run_tasks

if __name__ == "__main__":
    run_tasks(test_workers.sleep, range(2), 2, lambda process: print(process, flush=True))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only there the kernel ends a process with its parent")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_processes_die_with_their_parent(tmp_path: Path, number: signal.Signals) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(folder=str(Path(__file__).parent)))
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    processes = [int(parent.stdout.readline()) for _ in range(2)]
    parent.send_signal(number)
    parent.wait()
    until_gone(processes)
