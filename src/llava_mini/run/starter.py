"""The process that starts the jobs of a sweep on this machine, and imports once what all of them import.

Imports (torch, lightning, mlflow) take a fifth of a small run's time. The starter does them before the first job, and
each job is a fork of it. All jobs end with the starter, and the starter ends with the process that made it.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from llava_mini.errors import UserError
from llava_mini.processes import end_with_parent

_SECONDS_BETWEEN_LOOKS = 0.05


@dataclass(frozen=True)
class Request:
    """A job to start.

    Attributes:
        command: Command line.
        environment: What is added to the starter's environment.
        log: Existing file that the output is appended to.
        imports: Modules to import before the fork. If there are any and the command is a module of this Python
            (`python -m ...`), it runs in the fork itself; else the fork becomes the command. Nothing that is imported
            may use a GPU, which a fork could not use any more.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    imports: tuple[str, ...] = ()


class Starter:
    """The starter, as seen by the process that wants jobs started.

    Its environment has what is read when torch is imported, such as the number of threads.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._connection, theirs = Pipe()
        self._waiting: list[tuple[int, int]] = []
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import main; main({theirs.fileno()}, {os.getpid()})"],
            stdin=subprocess.DEVNULL,
            env=dict(environment),
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # so that Ctrl-C reaches neither it nor the jobs
        )
        theirs.close()

    def start(self, request: Request) -> int:
        """Start a job and return its process id, which is also that of its process group.

        Raises:
            UserError: the starter has died, and all jobs with it.
        """
        with self._alive():
            self._connection.send(request)
            while isinstance(answer := self._answer(), tuple):
                self._waiting.append(answer)
        return answer

    def ended(self) -> Iterator[tuple[int, int]]:
        """Yield process id and exit status of each job that ended since the last call.

        The status of a job that was killed is minus the signal's number.

        Raises:
            UserError: the starter has died, and all jobs with it.
        """
        with self._alive():
            while self._connection.poll():
                if isinstance(answer := self._answer(), tuple):  # else the job of a `start` that Ctrl-C has ended
                    self._waiting.append(answer)
        ended, self._waiting = self._waiting, []
        yield from ended

    def close(self) -> None:
        """End the starter and all jobs that still run."""
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def _answer(self) -> int | tuple[int, int]:
        """Wait for the next message: the process id of a job that was started, or id and status of one that ended.

        Ctrl-C ends the waiting, but comes before or after a message: the rest of half a one would be read as another.
        """
        self._connection.poll(None)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            answer: int | tuple[int, int] = self._connection.recv()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return answer

    @contextmanager
    def _alive(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, ConnectionError):
            status = self._process.wait()
            how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
            raise UserError(f"the process that starts the runs {how}, and its runs ended with it") from None


def _serve(connection: Connection) -> Request | None:
    """Fork for each request and report jobs that ended.

    Return the request in a fork; None in the starter, when nobody can request anything any more.
    """
    children: set[int] = set()
    while True:
        if connection.poll(_SECONDS_BETWEEN_LOOKS if children else None):
            try:
                request: Request = connection.recv()
            except EOFError:
                return None
            _append_output_to(request.log)
            for name in request.imports:
                with suppress(Exception):  # the job imports it again and then reports the error itself
                    import_module(name)
            parent = os.getpid()
            if not (child := os.fork()):
                connection.close()
                os.setpgid(0, 0)
                end_with_parent(parent)
                return request
            with suppress(PermissionError, ProcessLookupError):  # the fork was faster
                os.setpgid(child, child)
            children.add(child)
            connection.send(child)
        for child in list(children):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                children.remove(child)
                connection.send((child, os.waitstatus_to_exitcode(status)))


def _append_output_to(log: Path) -> None:
    """Make a file the output of this process, and so of its next fork."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def _become(request: Request) -> None:
    """Do the request in this process, which is a fork."""
    os.environ.update(request.environment)
    command = list(request.command)
    alone = threading.active_count() == 1  # a fork has no other threads, and keeps locks that they held
    if request.imports and alone and sys.platform == "linux" and command[:2] == [sys.executable, "-m"]:
        sys.argv = command[2:]
        runpy.run_module(command[2], run_name="__main__", alter_sys=True)
    else:
        os.execvp(command[0], command)


def main(descriptor: int, parent: int) -> None:
    """Serve requests; in a fork, do one."""
    end_with_parent(parent)
    if (request := _serve(Connection(descriptor))) is not None:
        _become(request)
