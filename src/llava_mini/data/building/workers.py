"""Distributes numbered tasks to processes that end with the process that started them, in whatever way that one ends.

A process that dies in the middle of a task (killed for its memory use, for example) is an error that names the task.
Ctrl-C reaches only the process that distributes the tasks, which then ends the others.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from llava_mini.processes import end_with_parent

Report = Callable[[Any], None]
Work = Callable[[int, Report], None]


class WorkerDiedError(RuntimeError):
    """A process ended in the middle of `task`; `cause` is the signal or exit status, as text."""

    def __init__(self, task: int, exitcode: int) -> None:
        self.task = task
        self.cause = f"killed by {signal.Signals(-exitcode).name}" if exitcode < 0 else f"exit status {exitcode}"
        super().__init__(f"the process of task {task} died: {self.cause}")


def run_tasks(work: Work, tasks: Sequence[int], workers: int, report: Report) -> None:
    """Run `work(task, report)` for every task in order, in up to `workers` processes; in this one if one is enough.

    `report` is called in this process with what the work reports, as it comes; work and reports must be picklable.

    Raises:
        WorkerDiedError: A process died.
        Exception: Exception that a task raised, with the traceback of its process as a note. After any exception,
            including Ctrl-C, no process is left.
    """
    if min(workers, len(tasks)) <= 1:
        for task in tasks:
            work(task, report)
        return
    waiting = deque(tasks)
    pool: list[_Worker] = []
    try:
        for _ in range(min(workers, len(tasks))):
            pool.append(_Worker(work))
            pool[-1].give(waiting.popleft())
        running = list(pool)
        while running:
            ready = wait([worker.connection for worker in running])
            for worker in [worker for worker in running if worker.connection in ready]:
                if not worker.has_finished(report):
                    continue
                if waiting:
                    worker.give(waiting.popleft())
                else:
                    running.remove(worker)
    finally:
        for worker in pool:
            worker.end()


class _Worker:
    """A worker process and the connection to it.

    Its messages are pairs: "reported" and what the work reports, "failed" and an exception, "finished" and None.
    """

    def __init__(self, work: Work) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.task = -1
        self.process: SpawnProcess = context.Process(target=_main, args=(work, theirs, os.getpid()), daemon=True)
        with _without_interrupts():
            self.process.start()
        theirs.close()  # so that its death is noticed at this end

    def give(self, task: int) -> None:
        self.task = task
        self.connection.send(task)

    def has_finished(self, report: Report) -> bool:
        """Receive the message that has come, and return whether it finishes the task."""
        try:
            kind, value = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            raise WorkerDiedError(self.task, self.process.exitcode or 0) from None
        if kind == "failed":
            raise value
        if kind == "reported":
            report(value)
        return kind == "finished"

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Delay Ctrl-C until the block ends; processes started in it never receive one."""
    resource_tracker.ensure_running()  # when it starts by itself, it unblocks interrupts
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def _main(work: Work, connection: Connection, parent_pid: int) -> None:
    """Run tasks in a worker process until its parent closes the connection or ends."""
    end_with_parent(parent_pid)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            work(task, lambda value: connection.send(("reported", value)))
        except Exception as error:  # noqa: BLE001 - raised again in the parent
            error.add_note(f"In the process of task {task}:\n{traceback.format_exc()}")
            connection.send(("failed", error))
        else:
            connection.send(("finished", None))
