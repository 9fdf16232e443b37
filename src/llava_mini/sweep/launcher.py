"""Launcher, which runs the runs of a sweep as processes: one small class, chosen by the config's `launcher` group.

A launcher takes jobs and yields events about them. If the loop over the events ends early, by Ctrl-C or an error, the
launcher ends all its processes before the loop is left.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import torch

from llava_mini.errors import UserError
from llava_mini.files import writing
from llava_mini.processes import cores, ending_with_this

LOG_HEADER = "=== "  # begins the line that separates attempts in log.txt
_POLL_SECONDS = 0.05
_GRACE_SECONDS = 3.0


@dataclass(frozen=True)
class Job:
    """Command to run: its output goes to `folder/log.txt`, `environment` is added to this process's environment."""

    name: str
    command: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Started:
    """Event: a job's process has started."""

    job: Job


@dataclass(frozen=True)
class Ended:
    """Event: a job's process has ended. A negative `returncode` is the signal that killed it."""

    job: Job
    returncode: int
    seconds: float


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

    Each process gets its own GPUs. On CPU it gets one thread, since small models run slower with two under load.

    Args:
        max_parallel: Number of jobs that run at the same time. If there are too few GPUs for them, they share the
            GPUs in turn. Default: as many as the GPUs, or else the cores, suffice for.
        devices: Number of devices of one job.
    """

    def __init__(self, max_parallel: int | None = None, *, devices: int = 1) -> None:
        if max_parallel is not None and max_parallel < 1:
            raise UserError(f"launcher.max_parallel={max_parallel}: must be at least 1, or null for all cores or GPUs")
        gpus = _gpus()
        self._gpus = [",".join(gpus[first : first + devices]) for first in range(0, len(gpus) - devices + 1, devices)]
        if gpus and not self._gpus:
            self._gpus = [",".join(gpus)]  # too few GPUs: a job that needs more reports it
        self._parallel = max_parallel or len(self._gpus) or max(cores() // devices, 1)

    @property
    def parallel(self) -> int:
        return self._parallel

    def run(self, jobs: Sequence[Job]) -> Generator[Started | Ended, None, None]:
        waiting, slots, running = list(jobs), list(range(self._parallel)), dict[int, _Process]()
        try:
            while waiting or running:
                while waiting and slots:
                    slot, job = slots.pop(0), waiting.pop(0)
                    running[slot] = _Process(job, self._environment(slot))
                    yield Started(job)
                for slot, process in list(running.items()):
                    if (returncode := process.poll()) is not None:
                        del running[slot]
                        slots.append(slot)
                        yield Ended(process.job, returncode, process.seconds())
                time.sleep(_POLL_SECONDS)
        finally:
            _end(list(running.values()))

    def _environment(self, slot: int) -> dict[str, str]:
        if self._gpus:
            return {"CUDA_VISIBLE_DEVICES": self._gpus[slot % len(self._gpus)]}
        return {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class _Process:
    """Process of one job, in its own session so that a signal to it reaches its workers and nothing else."""

    def __init__(self, job: Job, environment: Mapping[str, str]) -> None:
        self.job = job
        self._start = time.monotonic()
        path = job.folder / "log.txt"
        with writing(path):
            job.folder.mkdir(parents=True, exist_ok=True)
            log = path.open("ab", buffering=0)
        with log:
            with writing(path):
                log.write(f"{LOG_HEADER}{datetime.now().astimezone().isoformat(timespec='seconds')}\n".encode())
            self._popen = subprocess.Popen(
                ending_with_this(job.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment, **job.environment},
                start_new_session=True,
            )

    def poll(self) -> int | None:
        """Exit status of the process, or None while it runs; workers that outlive their run are killed."""
        returncode = self._popen.poll()
        if returncode is not None:
            self.signal(signal.SIGKILL)
        return returncode

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # no process is left in its session
            os.killpg(self._popen.pid, number)

    def seconds(self) -> float:
        return time.monotonic() - self._start


def _end(processes: Sequence[_Process]) -> None:
    """Ask processes to terminate, wait a little, then kill them; a second Ctrl-C while waiting kills at once."""
    try:
        for process in processes:
            process.signal(signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_SECONDS
        while time.monotonic() < deadline and any(process.poll() is None for process in processes):
            time.sleep(_POLL_SECONDS)
    finally:
        for process in processes:
            process.signal(signal.SIGKILL)


def _gpus() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES of the GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in visible.split(",") if name.strip()]
    count = torch.cuda.device_count()
    return names[:count] if names else [str(index) for index in range(count)]
