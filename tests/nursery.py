"""A process that has loaded all code once and then begins commands by forking: none waits for torch to be imported.

Reads a line of JSON for every command, the arguments of `lead`; writes its process group when it has begun and its
exit status (negative: the signal) when it has ended. What it says goes to standard error.
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any

import torch
from transformers import get_cosine_schedule_with_warmup

from llava_mini.cli import main
from llava_mini.stages.callbacks import History
from llava_mini.training import run as train

assert train and get_cosine_schedule_with_warmup  # what takes long to load
for name in ("s3fs", "sklearn.datasets"):  # what a run loads when it writes a checkpoint, or makes its data
    import_module(name)
torch.set_num_threads(1)


def lead(
    arguments: list[str],
    ranks: int = 0,
    machines: int = 1,
    killed_after: int = 0,
    terminal: str = "",
    environment: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """In a session of its own, at a terminal if one is named: the command, or its ranks as it would begin them."""
    os.setsid()
    if terminal:
        sit_at(terminal)
    sys.argv = ["llava-mini", *arguments]
    os.environ.update(environment)
    if killed_after:
        kill_after(killed_after)
    if not ranks:
        return main(arguments)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(ranks)}
    os.environ.update(meeting)
    for rank in range(ranks):
        if os.fork() == 0:
            os.environ.update(own_variables(rank, ranks // machines, machines))
            os._exit(main(arguments))
    for _ in range(ranks):
        status = os.waitstatus_to_exitcode(os.wait()[1])
        if status:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.killpg(0, signal.SIGTERM)
            return status
    return 0


def sit_at(terminal: str) -> None:
    """Have it as input and output, as of a process that was started there."""
    for number, mode in enumerate("rww"):
        os.dup2(os.open(terminal, os.O_RDWR), number)
        stream = open(number, mode, buffering=1 if number else -1, closefd=False)  # noqa: SIM115  # until the process ends
        setattr(sys, ("stdin", "stdout", "stderr")[number], stream)


def kill_after(lines: int) -> None:
    """SIGKILL at a chosen batch: from outside, a fast run could end before the signal comes."""
    wrote = History.on_train_batch_end

    def kill(self: History, *arguments: Any) -> None:
        wrote(self, *arguments)
        if len(self.path.read_text().splitlines()) == lines:
            os.kill(os.getpid(), signal.SIGKILL)

    History.on_train_batch_end = kill  # type: ignore[assignment]  # it takes whatever Lightning gives


def own_variables(rank: int, devices: int, machines: int) -> dict[str, str]:
    """By what a rank knows itself: as this program tells it, or for several machines as torchrun does."""
    if machines == 1:
        return {"LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    machine, local_rank = divmod(rank, devices)
    told = {"RANK": rank, "GROUP_RANK": machine, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": devices}
    return {"TORCHELASTIC_RUN_ID": "run", **{name: str(value) for name, value in told.items()}}


out = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)
print("ready", file=out)
for line in sys.stdin:
    leader = os.fork()
    if leader == 0:
        status = lead(**json.loads(line))
        sys.stdout.flush()
        os._exit(status)
    print(leader, file=out)
    print(os.waitstatus_to_exitcode(os.waitpid(leader, 0)[1]), file=out)
