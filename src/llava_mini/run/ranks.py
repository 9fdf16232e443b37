"""Several processes that train one run together (`trainer.devices`): started, watched and ended as one.

The process of the command line starts the ranks and waits. Rank 0 writes the run and prints to the terminal. The output
of the other ranks goes to `log.rankN.txt` in the run's folder. When one rank fails all are ended, and on Linux no rank
outlives the process that started it.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from llava_mini.errors import UserError
from llava_mini.files import reading, writing
from llava_mini.processes import ending_with_this

OWN_MESSAGE = "llava-mini: "  # start of the line that says why a command stopped itself
INTERRUPTED = 130
_SECONDS_FOR_RANK_0 = 5.0  # for rank 0 to print itself why it ends
_SECONDS_AFTER_CTRL_C = 20.0  # for rank 0 to shut down cleanly, including its tracker


def own_rank() -> int | None:
    """Return this process's rank among those that train together; None if it was not started as a rank."""
    number = os.environ.get("RANK", os.environ.get("LOCAL_RANK"))
    return None if number is None else int(number)


def train_command(config_dirs: Sequence[str]) -> list[str]:
    """Return the command line of a run, without its overrides."""
    extra = [part for folder in config_dirs for part in ("--config-dir", folder)]
    return [sys.executable, "-m", "llava_mini", *extra, "train"]


def run_ranks(command: Sequence[str], count: int, folder: Path) -> int:
    """Run `command` in `count` processes that find each other as torch's distributed processes do.

    Return 0, or the exit status of the rank that failed first, 128 + n if signal n killed it. The logs of all ranks but
    rank 0 go to `folder`.

    Raises:
        KeyboardInterrupt: the run was interrupted; all ranks have then ended.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    ended: queue.Queue[int] = queue.Queue()
    ranks: list[subprocess.Popen[bytes]] = []
    environment = _environment(count)
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        for number in range(count):
            ranks.append(_start(command, number, folder, environment))
            threading.Thread(target=_tell_end, args=(ranks[number], number, ended), daemon=True).start()
        for _ in ranks:
            number = ended.get()
            if ranks[number].returncode != 0:
                return _failure(ranks, number, folder)
        return 0
    except KeyboardInterrupt:
        if ranks:
            _interrupt(ranks[0])
        raise
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
        signal.signal(signal.SIGTERM, before)


def _environment(count: int) -> dict[str, str]:
    """Return the environment by which `count` processes of this machine find each other."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(count), "NODE_RANK": "0"}
    defaults = {
        "OMP_NUM_THREADS": "1",  # else Lightning divides all cores among the ranks, whatever `trainer.threads` says
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # else torch warns about the unused-parameter search for batches without images
    }
    return {**defaults, **os.environ, **meeting}


def _start(
    command: Sequence[str], number: int, folder: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start a rank, which ends with this process."""
    wrapped = ending_with_this(command)
    own = {**environment, "LOCAL_RANK": str(number)}
    if number == 0:
        return subprocess.Popen(wrapped, env=own)
    path = log_path(folder, number)
    with writing(path):
        log = path.open("wb")
    with log:
        return subprocess.Popen(wrapped, env=own, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)


def log_path(folder: Path, number: int) -> Path:
    """Return the path of the log of a rank other than 0."""
    return folder / f"log.rank{number}.txt"


def _tell_end(process: subprocess.Popen[bytes], number: int, ended: queue.Queue[int]) -> None:
    process.wait()
    ended.put(number)


def _failure(ranks: Sequence[subprocess.Popen[bytes]], number: int, folder: Path) -> int:
    """Return the exit status for the end of rank `number`, after printing a line about it unless rank 0 has said why.

    Raises:
        KeyboardInterrupt: rank 0 was interrupted.
    """
    status = ranks[number].returncode
    if number == 0 and status == INTERRUPTED:
        raise KeyboardInterrupt
    log = log_path(folder, number)
    last = _last_line(log) if number else ""
    if status < 0:
        killed = f"{OWN_MESSAGE}rank {number} of {len(ranks)} was killed by {signal.Signals(-status).name}"
        print(f"{killed}; see {log}" if number else killed, file=sys.stderr)
    elif last.startswith(OWN_MESSAGE):  # mostly a mistake that every rank finds, and that rank 0 is about to print
        with suppress(subprocess.TimeoutExpired):
            ranks[0].wait(_SECONDS_FOR_RANK_0)
        if ranks[0].returncode != status:
            print(last, file=sys.stderr)
    elif number:
        ended = f"{OWN_MESSAGE}rank {number} of {len(ranks)} ended with status {status}"
        print(f"{ended}; {log} ends with: {last}", file=sys.stderr)
    return status if status > 0 else 128 - status


def _last_line(path: Path) -> str:
    """Return the last line that is not blank, or an empty string if there is none; the reason if it cannot be read."""
    try:
        with reading(path):
            lines = [line.strip() for line in path.read_text(errors="replace").splitlines()]
    except UserError as error:
        return str(error)
    return next((line for line in reversed(lines) if line), "")


def _interrupt(rank_0: subprocess.Popen[bytes]) -> None:
    """Give rank 0 time to shut down cleanly. A terminal interrupts it too, so it is signaled only if it still runs."""
    with suppress(subprocess.TimeoutExpired):
        rank_0.wait(1.0)
    rank_0.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        rank_0.wait(_SECONDS_AFTER_CTRL_C)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
