"""Launcher, which runs the runs of a sweep as processes: one small class, chosen by the config's `launcher` group.

A launcher takes jobs and yields events about them. If the loop over the events ends early, by Ctrl-C or an error, the
launcher ends all its processes before the loop is left.
"""

from __future__ import annotations

import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import torch

from llava_mini.errors import UserError, refused
from llava_mini.files import writing
from llava_mini.processes import cores
from llava_mini.run.starter import Request, Starter

LOG_HEADER = "=== "  # begins the line that separates attempts in log.txt
_POLL_SECONDS = 0.05
_LOOK_SECONDS = 2.0
_GRACE_SECONDS = 3.0


@dataclass(frozen=True)
class Job:
    """Command to run."""

    name: str
    command: tuple[str, ...]
    folder: Path  # for the job's output, which goes to `log.txt` there
    environment: Mapping[str, str] = field(default_factory=dict)  # added to this process's
    imports: tuple[str, ...] = ()  # modules that the command will import; a launcher may import them once for all jobs


@dataclass(frozen=True)
class Started:
    """Event: a job's process has started."""

    job: Job


@dataclass(frozen=True)
class Ended:
    """Event: a job's process has ended. A negative `returncode` is the signal that killed it.

    `reason` is a line on why the launcher has ended it; empty if it ended by itself.
    """

    job: Job
    returncode: int
    seconds: float
    reason: str = ""


class Launcher(ABC):
    """Runs jobs, each in a separate process."""

    @property
    @abstractmethod
    def parallel(self) -> int:
        """Number of jobs that run at the same time."""

    @abstractmethod
    def run(self, jobs: Sequence[Job]) -> Generator[Started | Ended, None, None]:
        """Run all jobs and yield each event as it happens.

        Closing the iterator, or an exception in it (including KeyboardInterrupt), ends the running jobs.
        """


class LocalLauncher(Launcher):
    """Runs jobs on this machine: as many at the same time as there are GPUs, or CPU cores if there is no GPU.

    Each process gets its own GPUs (`devices` of them), or shares them in turn if there are too few for `max_parallel`
    jobs. On CPU it gets one thread, since small models run slower with two under load.

    Args:
        max_parallel: Number of jobs at the same time; None: one for each GPU or core.
        idle_timeout: Seconds in which no file in a job's folder may change; then its process group is killed. None: no
            limit.
        devices: Number of devices of each job.
    """

    def __init__(self, max_parallel: int | None = None, *, idle_timeout: float | None = None, devices: int = 1) -> None:
        if max_parallel is not None and max_parallel < 1:
            raise refused("launcher.max_parallel", max_parallel, allowed="1 and above, and null for all cores or GPUs")
        if idle_timeout is not None and not idle_timeout > 0:
            raise refused("launcher.idle_timeout", idle_timeout, allowed="seconds above 0, and null for no limit")
        self._idle_timeout = idle_timeout
        gpus = _gpus()
        self._gpus = [",".join(gpus[first : first + devices]) for first in range(0, len(gpus) - devices + 1, devices)]
        if gpus and not self._gpus:
            self._gpus = [",".join(gpus)]  # too few GPUs: a job that needs more reports it
        self._parallel = max_parallel or len(self._gpus) or max(cores() // devices, 1)

    @property
    def parallel(self) -> int:
        return self._parallel

    def run(self, jobs: Sequence[Job]) -> Generator[Started | Ended, None, None]:
        waiting, slots, running = list(jobs), list(range(self._parallel)), dict[int, _Running]()
        threads = {} if self._gpus else {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        starter = Starter({**os.environ, **threads})
        try:
            while waiting or running:
                while waiting and slots:
                    slot, job, start = slots.pop(0), waiting.pop(0), time.monotonic()
                    running[starter.start(self._request(job, slot))] = _Running(job, slot, start, start)
                    yield Started(job)
                killed = {pid: -signal.SIGKILL for pid, each in running.items() if self._is_over(pid, each)}
                for pid, returncode in [*starter.ended(), *killed.items()]:
                    _signal([pid], signal.SIGKILL)  # workers that outlive their run
                    if (ended := running.pop(pid, None)) is None:
                        continue  # it was given up, or is in both lists
                    slots.append(ended.slot)
                    yield Ended(ended.job, returncode, time.monotonic() - ended.start, ended.reason)
                time.sleep(_POLL_SECONDS)
        finally:
            _end(starter, set(running))

    def _request(self, job: Job, slot: int) -> Request:
        """Return what the starter needs, after writing the head of the job's log."""
        log = job.folder / "log.txt"
        with writing(log):
            job.folder.mkdir(parents=True, exist_ok=True)
            with log.open("ab", buffering=0) as file:
                file.write(f"{LOG_HEADER}{datetime.now().astimezone().isoformat(timespec='seconds')}\n".encode())
        if not self._gpus:
            return Request(job.command, job.environment, log.absolute(), job.imports)
        own = {"CUDA_VISIBLE_DEVICES": self._gpus[slot % len(self._gpus)], **job.environment}
        return Request(job.command, own, log.absolute())

    def _is_over(self, pid: int, running: _Running) -> bool:
        """Kill a job that makes no progress; return whether one that was killed has had its time to end.

        A process that waits for a file system which does not answer cannot even be killed, and is given up.
        """
        now = time.monotonic()
        if running.killed is not None:
            return now > running.killed + _GRACE_SECONDS
        if self._idle_timeout is None or not running.is_idle(now, self._idle_timeout):
            return False
        running.killed = now
        running.reason = f"it wrote nothing for {self._idle_timeout:g} s (launcher.idle_timeout) and was ended"
        _signal([pid], signal.SIGKILL)
        with suppress(OSError), (running.job.folder / "log.txt").open("ab", buffering=0) as log:
            log.write(f"llava-mini: {running.reason}\n".encode())
        return False


@dataclass
class _Running:
    job: Job
    slot: int
    start: float
    changed: float  # when a file was last seen to change
    killed: float | None = None  # when the launcher has killed it
    reason: str = ""  # of that
    looked: float = 0.0
    files: tuple[tuple[str, int, int], ...] = ()

    def is_idle(self, now: float, limit: float) -> bool:
        """Whether no file in the job's folder has changed for `limit` seconds; it is looked at every few seconds."""
        if now > self.looked + _LOOK_SECONDS or now > self.changed + limit:
            self.looked = now
            if (files := _files(self.job.folder)) != self.files:
                self.files, self.changed = files, now
        return now > self.changed + limit


def _files(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Return path, size and time of change of every file in a folder, also of those in its folders."""
    found = []
    for path in sorted(folder.rglob("*")):
        with suppress(OSError):  # it was removed in this moment
            status = path.stat()
            found.append((str(path), status.st_size, status.st_mtime_ns))
    return tuple(found)


def _end(starter: Starter, running: set[int]) -> None:
    """Ask processes to terminate, wait a little, then kill them; a second Ctrl-C while waiting kills at once."""
    try:
        _signal(running, signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_SECONDS
        left = set(running)
        with suppress(UserError):  # the starter has died, and they with it
            while left and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
                left -= {pid for pid, _ in starter.ended()}
    finally:
        _signal(running, signal.SIGKILL)
        starter.close()


def _signal(groups: Iterable[int], number: signal.Signals) -> None:
    """Signal process groups: a run and its workers, and nothing else."""
    for group in groups:
        with suppress(ProcessLookupError):  # no process is left in it
            os.killpg(group, number)


def _gpus() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES of the GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in visible.split(",") if name.strip()]
    count = torch.cuda.device_count()
    return names[:count] if names else [str(index) for index in range(count)]
