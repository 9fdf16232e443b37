"""Runs of several ranks that are begun and killed by tests, and what they leave behind."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llava_mini.data.format.shards import write_shards
from llava_mini.files import rank_paths

ROOT = Path(__file__).parents[1]
MIXED_STEPS = 20  # of the `arguments` of a run


class Nursery:
    """See nursery.py."""

    def __init__(self, log: Path) -> None:
        self.log = log
        command = [sys.executable, str(Path(__file__).with_name("nursery.py"))]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with log.open("w") as file:
            self.process = subprocess.Popen(command, cwd=ROOT, stderr=file, **pipes)
        assert self._line() == "ready"

    def begin(self, overrides: list[str], ranks: int, machines: int = 1) -> int:
        """The process group of a run that has begun; with no ranks it is the command that begins them."""
        return self.start("train", *overrides, ranks=ranks, machines=machines)

    def start(self, *arguments: str, **options: Any) -> int:
        """The process, and process group, of a command that has begun; options are those of nursery.py's `lead`."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"arguments": arguments, **options}) + "\n")
        self.process.stdin.flush()
        return int(self._line())

    def call(self, *arguments: str, **options: Any) -> tuple[int, str]:
        """A command's exit status (negative: the signal) and what it said; options as of `start`."""
        before = self.log.stat().st_size
        self.start(*arguments, **options)
        return self.status(), self.log.read_bytes()[before:].decode()

    def status(self) -> int:
        """How the run has ended, once it has."""
        return int(self._line())

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


def write_texts(folder: Path, count: int) -> None:
    """A set of texts, and one record that is broken."""
    talk = [{"from": "human", "value": "how many star objects"}, {"from": "gpt", "value": "two"}]
    record = {"json": json.dumps({"id": "0", "conversations": talk}).encode()}
    write_shards([*((f"text-{i}", record) for i in range(count)), ("text-bad", {"json": b"{"})], folder)


def history(run_dir: Path) -> list[dict[str, Any]]:
    """What all ranks have trained on, in the order of the samples."""
    lines = [
        {**json.loads(line), "rank": rank}
        for rank, path in enumerate(rank_paths(run_dir / "history.jsonl"))
        for line in path.read_text().splitlines()
    ]
    return sorted(lines, key=lambda line: (line["position"], line["rank"]))


def wait_for(what: Callable[[], bool], seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def trained_lines(run_dir: Path) -> int:
    path = run_dir / "history.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def has_trained(run_dir: Path, lines: int) -> bool:
    return trained_lines(run_dir) >= lines


def in_group(group: int) -> list[int]:
    """Processes of a group that are alive."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, member = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue  # it has ended meanwhile
        if int(member) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


def is_gone(group: int) -> bool:
    return not in_group(group)
