"""Progress of a sweep as lines: one when a run starts, finishes or fails, with counts and the time that is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from llava_mini.sweep.text import DASH, MINUS, duration

Say = Callable[[str], None]


def print_now(line: str) -> None:
    """Print a line immediately, also into a pipe, and on a terminal that lacks some of the characters."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        line.encode(encoding)
    except UnicodeEncodeError:  # the sign of a difference must not be lost to a locale
        line = line.translate({ord(MINUS): "-", ord(DASH): "-"})
    print(line.encode(encoding, "backslashreplace").decode(encoding), flush=True)


class Progress:
    """Reports the progress of a sweep, of which `missing` runs are to be run now, line by line."""

    def __init__(
        self, total: int, missing: int, parallel: int, say: Say, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._total, self._ended, self._waiting, self._parallel = total, total - missing, missing, parallel
        self._say, self._clock = say, clock
        self._started: dict[str, float] = {}
        self._seconds: list[float] = []
        kept = f" {self._ended} finished before," if self._ended else ""
        say(f"{total} runs:{kept} {missing} to run" + (f", {min(parallel, missing)} side by side" if missing else ""))

    def started(self, name: str) -> None:
        """Report that a run's process has started."""
        self._waiting -= 1
        self._started[name] = self._clock()
        self._line("started", name, "")

    def finished(self, name: str, seconds: float, result: dict[str, Any]) -> None:
        """Report that a run has finished with a result."""
        self._seconds.append(seconds)
        exact = f"{100 * result['accuracy']['val']:.1f} % exact match on validation"
        self._end(name, "finished", f" in {duration(seconds)}, {exact}")

    def failed(self, name: str, seconds: float, error: str) -> None:
        """Report that a run has ended without a result."""
        self._end(name, "FAILED", f" after {duration(seconds)}: {error}")

    def _end(self, name: str, what: str, more: str) -> None:
        del self._started[name]
        self._ended += 1
        self._line(what, name, more + self._left())

    def _left(self) -> str:
        """Text on the time that is left, if the missing runs take the mean time of the finished runs."""
        if not self._seconds or not (self._waiting or self._started):
            return ""
        mean = sum(self._seconds) / len(self._seconds)
        running = [max(0.0, mean - (self._clock() - start)) for start in self._started.values()]
        work = sum(running) + mean * self._waiting
        return f"; about {duration(max([work / self._parallel, *running]))} left"

    def _line(self, what: str, name: str, more: str) -> None:
        width = len(str(self._total))
        self._say(f"[{self._ended:{width}}/{self._total}] {what:8} {name}{more}")
