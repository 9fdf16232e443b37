"""A process that has loaded all code once and then begins runs of several ranks by forking: each takes a second.

Reads a line `[ranks, [argument, ...], machines]` for every run; writes the run's process group when it has begun and
its exit status (negative: the signal) when it has ended. What the ranks say goes to standard error.
"""

import json
import os
import signal
import socket
import sys

import torch

from llava_mini.cli import main
from llava_mini.commands import train  # what takes long to load

assert train
torch.set_num_threads(1)


def lead(ranks: int, arguments: list[str], machines: int) -> int:
    """Begin the ranks as the command line would, in a process group of their own, and wait for them."""
    os.setsid()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(ranks)}
    os.environ.update(meeting)
    for rank in range(ranks):
        if os.fork() == 0:
            os.environ.update(own_variables(rank, ranks // machines, machines))
            os._exit(main(["train", *arguments]))
    for _ in range(ranks):
        status = os.waitstatus_to_exitcode(os.wait()[1])
        if status:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.killpg(0, signal.SIGTERM)
            return status
    return 0


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
        os._exit(lead(*json.loads(line)))
    print(leader, file=out)
    print(os.waitstatus_to_exitcode(os.waitpid(leader, 0)[1]), file=out)
