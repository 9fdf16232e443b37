"""Real processes: side by side, apart from each other, ended with whoever started them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.refusals import refuses

from llava_mini.sweep import launcher
from llava_mini.sweep.launcher import Ended, Job, LocalLauncher, Started

IsRunning = Callable[[int], bool]


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    """job(name, code): a job that runs Python code in tmp_path/name."""

    def make(name: str, code: str, **environment: str) -> Job:
        return Job(name, (sys.executable, "-c", code), tmp_path / name, environment)

    return make


def log_of(job: Job) -> str:
    return (job.folder / "log.txt").read_text()


def wait_for(what: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_jobs_run_side_by_side_but_no_more_than_allowed(job: Callable[..., Job]) -> None:
    code = "import time; print(time.time()); time.sleep(0.4); print(time.time())"
    jobs = [job(f"job-{i}", code) for i in range(5)]
    running, most = 0, 0
    for event in LocalLauncher(max_parallel=2).run(jobs):
        running += 1 if isinstance(event, Started) else -1
        most = max(most, running)
    assert (running, most) == (0, 2)
    spans = sorted([float(line) for line in log_of(item).splitlines()[1:]] for item in jobs)
    assert max(spans[0][0], spans[1][0]) < min(spans[0][1], spans[1][1]), "the first two overlap"
    assert all(sum(a <= start < b for a, b in spans) <= 2 for start, _ in spans)


def test_how_a_process_ends_is_reported_and_touches_no_other(job: Callable[..., Job]) -> None:
    jobs = [
        job("good", "import time; time.sleep(0.5); print('done')"),
        job("bad", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)"),
        job("killed", "import os; os.kill(os.getpid(), 9)"),
        job("no-program", ""),
    ]
    jobs[3] = Job("no-program", ("/no/such/program",), jobs[3].folder)
    ended = {e.job.name: e for e in LocalLauncher(max_parallel=4).run(jobs) if isinstance(e, Ended)}
    assert {name: event.returncode for name, event in ended.items()} == {
        "good": 0,
        "bad": 7,
        "killed": -9,
        "no-program": 1,
    }
    assert 0.4 < ended["good"].seconds < 5
    assert set(log_of(jobs[1]).splitlines()[1:]) == {"out", "err"}
    assert "No such file" in log_of(jobs[3])


def test_a_process_gets_one_thread_or_one_gpu(job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import os; print(os.environ.get('OMP_NUM_THREADS'), os.environ.get('CUDA_VISIBLE_DEVICES'), os.environ['X'])"
    )
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    cpu = [job("cpu", code, X="1")]
    assert LocalLauncher().parallel == len(os.sched_getaffinity(0))
    list(LocalLauncher().run(cpu))
    assert log_of(cpu[0]).splitlines()[1] == "1 None 1"

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpu = [job(f"gpu-{i}", code, X="2") for i in range(2)]
    assert LocalLauncher().parallel == 2
    list(LocalLauncher().run(gpu))
    assert [log_of(item).splitlines()[1] for item in gpu] == ["None 0 2", "None 1 2"]

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, 3")
    more = [job(f"more-{i}", code + "; import time; time.sleep(0.5)", X="3") for i in range(3)]
    list(LocalLauncher(max_parallel=3).run(more))
    assert [log_of(item).splitlines()[1].split()[1] for item in more] == ["5", "3", "5"]


def test_a_process_of_several_devices_gets_as_many_gpus(
    job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import os, time; print(os.environ.get('CUDA_VISIBLE_DEVICES')); time.sleep(0.3)"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    jobs = [job(f"pair-{i}", code) for i in range(2)]
    launcher = LocalLauncher(devices=2)
    assert launcher.parallel == 2
    list(launcher.run(jobs))
    assert [log_of(item).splitlines()[1] for item in jobs] == ["0,1", "2,3"]
    assert LocalLauncher(devices=8).parallel == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert LocalLauncher(devices=10_000).parallel == 1


def test_attempts_are_apart_in_the_log(job: Callable[..., Job]) -> None:
    again = job("again", "print('words')")
    list(LocalLauncher(max_parallel=1).run([again]))
    list(LocalLauncher(max_parallel=1).run([again]))
    lines = log_of(again).splitlines()
    assert [lines[1], lines[3]] == ["words", "words"]
    assert lines[0].startswith("=== 20")


def test_workers_do_not_outlive_their_run(job: Callable[..., Job], is_running: IsRunning) -> None:
    code = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid)"
    leaving = job("leaving", code)
    list(LocalLauncher(max_parallel=1).run([leaving]))
    worker = int(log_of(leaving).splitlines()[-1])
    wait_for(lambda: not is_running(worker))


@pytest.mark.parametrize("stubborn", [False, True])
def test_leaving_the_loop_ends_what_runs(job: Callable[..., Job], is_running: IsRunning, stubborn: bool) -> None:
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" if stubborn else ""
    code = f"{ignore}import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    jobs = [job(f"job-{i}", code) for i in range(3)]
    events = LocalLauncher(max_parallel=2).run(jobs)
    assert isinstance(next(events), Started)
    assert isinstance(next(events), Started)
    wait_for(lambda: all(len(log_of(item).splitlines()) == 2 for item in jobs[:2]))
    pids = [int(log_of(item).splitlines()[1]) for item in jobs[:2]]
    start = time.monotonic()
    events.close()
    assert time.monotonic() - start < 6
    wait_for(lambda: not any(map(is_running, pids)), seconds=2)
    assert not jobs[2].folder.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux does this")
def test_processes_die_with_a_parent_that_is_killed(tmp_path: Path, is_running: IsRunning) -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    parent = f"""
import sys
from pathlib import Path
from llava_mini.sweep.launcher import Job, LocalLauncher
jobs = [Job(str(i), (sys.executable, "-c", {code!r}), Path({str(tmp_path)!r}) / str(i)) for i in range(2)]
list(LocalLauncher(max_parallel=2).run(jobs))
"""
    process = subprocess.Popen([sys.executable, "-c", parent])
    logs = [tmp_path / str(i) / "log.txt" for i in range(2)]
    wait_for(lambda: all(log.exists() and len(log.read_text().splitlines()) == 2 for log in logs), seconds=60)
    pids = [int(log.read_text().splitlines()[1]) for log in logs]
    assert all(map(is_running, pids))
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not any(map(is_running, pids)), seconds=5)


def test_a_job_without_progress_is_ended_with_all_its_processes_and_the_next_one_starts(
    job: Callable[..., Job], is_running: IsRunning
) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    hangs = (
        f"import os, subprocess, sys, time; print(os.getpid(), subprocess.Popen([sys.executable, '-c', {deaf!r}]).pid,"
        f" flush=True); {deaf}"
    )
    grows = "import pathlib, time\nfor i in range(20): time.sleep(0.2); (pathlib.Path(PLACE) / str(i)).touch()"
    jobs = [job("hangs", hangs), job("grows", ""), job("next", "print('done')")]
    jobs[1] = job("grows", grows.replace("PLACE", repr(str(jobs[1].folder))))
    events = LocalLauncher(max_parallel=2, idle_timeout=2.0).run(jobs)
    ended = {event.job.name: event for event in events if isinstance(event, Ended)}
    assert {name: each.returncode for name, each in ended.items()} == {"hangs": -9, "grows": 0, "next": 0}
    assert ended["hangs"].reason == "it wrote nothing for 2 s (launcher.idle_timeout) and was ended"
    assert 2 < ended["hangs"].seconds < 20 and ended["grows"].reason == ended["next"].reason == ""
    _, pids, last = log_of(jobs[0]).splitlines()
    assert last == f"llava-mini: {ended['hangs'].reason}"
    wait_for(lambda: not any(is_running(int(pid)) for pid in pids.split()))


def test_a_job_that_cannot_even_be_killed_is_given_up(
    job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, is_running: IsRunning
) -> None:
    monkeypatch.setattr(launcher, "_signal", lambda *_: None)  # as for a process that waits for a mount that is gone
    monkeypatch.setattr(launcher, "_GRACE_SECONDS", 0.5)
    lasting = job("lasting", "import os, time; print(os.getpid(), flush=True); time.sleep(600)")
    ended = [each for each in LocalLauncher(idle_timeout=2.0).run([lasting]) if isinstance(each, Ended)]
    assert [each.reason[:18] for each in ended] == ["it wrote nothing f"]
    wait_for(lambda: not is_running(int(log_of(lasting).splitlines()[1])))  # it ends with the starter


def test_an_impossible_number_is_named() -> None:
    with refuses("launcher.max_parallel", 0):
        LocalLauncher(max_parallel=0)
    for impossible in (0, -1.0, float("nan")):
        with refuses("launcher.idle_timeout", impossible):
            LocalLauncher(idle_timeout=impossible)
