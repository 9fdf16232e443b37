"""A lock ends with the process that holds it, however that ends; one that cannot be had is one line, or a warning."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from llava_mini.errors import UserError, WriteError
from llava_mini.files import folder_lock, locked, shard_lock
from llava_mini.sweep.folder import only_sweep
from llava_mini.tracking.spool import Origin, Spool

Lock = Callable[[Path], AbstractContextManager[Any]]
LOCKS: dict[str, Lock] = {
    "sweep": only_sweep,
    "set, store and world": folder_lock,
    "shard": lambda folder: shard_lock(folder, 3),
    "MLflow's database": lambda folder: locked(folder / "mlflow.db.lock"),
    "spool": lambda folder: Spool(folder)._lock(wait=False),
}
locks = pytest.mark.parametrize("lock", LOCKS.values(), ids=LOCKS)


def _hold_and_die(lock: Lock, folder: Path, ready: Any) -> None:
    with lock(folder):
        ready.set()
        signal.pause()


@locks
def test_the_lock_of_a_killed_process_is_free(lock: Lock, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    ready = fork.Event()
    process = fork.Process(target=_hold_and_die, args=(lock, tmp_path, ready))
    process.start()
    assert ready.wait(60)
    process.kill()
    process.join(60)
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(60)
    try:
        with lock(tmp_path):
            pass
    finally:
        signal.alarm(0)


def _too_long(*_: object) -> None:
    raise AssertionError("the lock of a dead process is waited for")


def test_a_living_sweep_is_reported(tmp_path: Path) -> None:
    with only_sweep(tmp_path), pytest.raises(UserError, match="another sweep is running in this folder"):  # noqa: SIM117
        with only_sweep(tmp_path):
            pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ESTALE, errno.EIO])
@locks
def test_a_file_system_without_locks_is_reported(
    lock: Lock, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    for name in ("flock", "lockf"):
        monkeypatch.setattr(fcntl, name, refused)
    with (
        pytest.raises(WriteError, match=rf"^{tmp_path}/\S*lock: cannot be written: {os.strerror(number)}$"),
        lock(tmp_path),
    ):
        pass


def test_a_report_is_not_what_a_run_ends_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path)
    spool.create(Origin("sqlite:///nowhere.db", "experiment", "name"))

    def refused(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refused)
    spool.create(Origin("sqlite:///nowhere.db", "experiment", "name"))
    assert "cannot be written (No locks available)" in caplog.text


def test_a_folder_that_cannot_be_written_is_read_without_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # as on a read-only mount, also for root
    with folder_lock(tmp_path):
        assert list(tmp_path.iterdir()) == []
