"""Journal between a run and its tracker: what a run reports is written here first and sent from here.

`spool.jsonl` in the run's folder contains one line per report, in order, and is only ever appended to. `tracking.json`
next to it says where the lines go and how many of their bytes are sent. Both survive `kill -9`: the next process
continues where the sending stopped. Some reports need more than the tracker itself, such as files, which go to an
artifact store. They are sent after the rest and counted separately, so a store that accepts no files blocks no metric.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from llava_mini.errors import UserError
from llava_mini.files import locked, read_json, write_json

log = logging.getLogger("llava_mini.tracking.tracker")

LINES_A_CALL = 100

Kind = Literal["params", "metrics", "tags", "status", "inputs", "file", "view"]
Status = Literal["FINISHED", "FAILED", "KILLED"]
Lane = Literal["reports", "extras"]
LANES: tuple[Lane, Lane] = ("reports", "extras")

_EXTRAS = ("inputs", "file", "view")
_TOGETHER = ("params", "metrics", "tags")  # one call can send many of these


@dataclass(frozen=True)
class Line:
    """One report: its kind, its time (milliseconds since 1970), the step it belongs to, its values."""

    kind: Kind
    time_ms: int
    step: int
    values: dict[str, Any]


@dataclass(frozen=True)
class DataInput:
    """A data set that a run reads."""

    name: str
    fingerprint: str  # hexadecimal hash of the content
    source: str  # path or URL
    samples: int
    context: str  # training, validation or test


@dataclass
class Origin:
    """Content of `tracking.json`."""

    uri: str  # of the tracker
    experiment: str
    name: str  # of the run
    parent_run_id: str | None = None  # under which this run is shown
    token: str = field(default_factory=lambda: uuid.uuid4().hex)  # finds the run if no reply came
    run_id: str | None = None  # None until it is created
    sent_bytes: int = 0  # offset in `spool.jsonl` up to which the reports are sent
    sent_extras_bytes: int = 0  # the same for inputs, files and views


class Spool:
    """Journal in one run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.journal = self.folder / "spool.jsonl"
        self._origin_file = self.folder / "tracking.json"
        self._said = False

    def create(self, origin: Origin) -> None:
        """Start the journal. An existing one (of a resumed run) continues and keeps its token and run.

        On a full disk nothing is stored and a warning says so: a run never ends because of a report.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            earlier = self.origin()
            if earlier is None:
                self._write_origin(origin)
                return
            self.redirect(origin.uri, origin.parent_run_id)
        except OSError as error:
            self._warn(error)

    def append(self, kind: Kind, values: Mapping[str, Any], step: int = 0) -> None:
        """Add a line. Lines that the disk does not accept are lost, with one warning for all of them."""
        line = Line(kind, int(time.time() * 1000), step, dict(values))
        try:
            self._append(json.dumps(asdict(line), default=str).encode() + b"\n")
        except OSError as error:
            self._warn(error)

    def pending(self, *lanes: Lane) -> int:
        """Return the number of unsent lines, of `lanes` or else of all; 0 for a folder without a journal."""
        origin = self.origin()
        return 0 if origin is None else sum(1 for lane in lanes or LANES for _ in self._unsent(origin, lane))

    def inputs(self) -> list[DataInput]:
        """Return the data sets that the run has reported, sent or not."""
        lines = self._lines(0) if self.origin() is not None else ()
        found = [DataInput(**each) for line, _ in lines if line.kind == "inputs" for each in line.values["datasets"]]
        return list(dict.fromkeys(found))

    def redirect(self, uri: str | None, parent_run_id: str | None) -> None:
        """Change where lines are sent. All lines are sent again if `uri` is another tracker; None changes nothing."""
        with self._lock(wait=True):
            origin = self.origin()
            if origin is None:
                return
            if uri is not None and uri != origin.uri:
                origin.uri, origin.run_id, origin.sent_bytes, origin.sent_extras_bytes = uri, None, 0, 0
            origin.parent_run_id = parent_run_id or origin.parent_run_id
            self._write_origin(origin)

    def deliver(self, lane: Lane, create: Callable[[Origin], str], send: Callable[[Origin, list[Line]], None]) -> None:
        """Send the unsent lines in order, and record after each call how far it got.

        Args:
            lane: Choice of lines: params, metrics, tags and status ("reports"); or inputs, files and views ("extras").
            create: Function that creates the run and returns its id.
            send: Function that sends lines to `origin.run_id`. One call gets at most `LINES_A_CALL` params, metrics and
                tags, or one line of another kind.

        Raises:
            BlockingIOError: another thread or process is delivering this journal.
            Exception: whatever `create` and `send` raise; what was sent before stays recorded.
        """
        with self._lock(wait=False):
            origin = self.origin()
            if origin is None:
                return
            if origin.run_id is None:
                origin.run_id = create(origin)
                self._write_origin(origin)
            for lines, end in _grouped(self._unsent(origin, lane)):
                send(origin, lines)
                if lane == "reports":
                    origin.sent_bytes = end
                else:
                    origin.sent_extras_bytes = end
                self._write_origin(origin)

    def origin(self) -> Origin | None:
        """Return where the journal is sent; None if the folder has none or it cannot be read, which is a warning.

        A run never ends because of a report. An origin that a crash has damaged is started again.
        """
        if not self._origin_file.exists():
            return None
        try:
            return Origin(**read_json(self._origin_file))
        except UserError as error:
            self._say(f"{error}; its reports begin again")
        except TypeError:
            self._say(f"{self._origin_file} is of another version; its reports begin again")
        return None

    def run_id(self) -> str | None:
        """Return the id of the tracker's run; None if it is not created yet."""
        origin = self.origin()
        return None if origin is None else origin.run_id

    def _unsent(self, origin: Origin, lane: Lane) -> Iterator[tuple[Line, int]]:
        """Yield the unsent lines of `lane`, each with the offset of its end."""
        extras = lane == "extras"
        for line, end in self._lines(origin.sent_extras_bytes if extras else origin.sent_bytes):
            if (line.kind in _EXTRAS) == extras:
                yield line, end

    def _lines(self, start: int) -> Iterator[tuple[Line, int]]:
        """Yield the complete lines after `start`, each with the offset of its end. A line cut by a kill is skipped."""
        if not self.journal.exists():
            return
        try:
            with self.journal.open("rb") as journal:
                end = journal.seek(start)
                for raw in journal:
                    end += len(raw)
                    if not raw.endswith(b"\n"):
                        return  # being written right now
                    with suppress(ValueError, TypeError):
                        yield Line(**json.loads(raw)), end
        except OSError as error:
            self._say(f"{self.journal} cannot be read ({error.strerror}); its reports wait")

    def _append(self, raw: bytes) -> None:
        with self.journal.open("ab+", buffering=0) as journal:
            if journal.seek(0, os.SEEK_END):
                journal.seek(-1, os.SEEK_END)
                if journal.read(1) != b"\n":  # the previous writer was killed within a line, or its disk was full
                    raw = b"\n" + raw
            if journal.write(raw) < len(raw):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _warn(self, error: OSError) -> None:
        self._say(f"{self.journal} cannot be written ({error.strerror}); reports are lost")

    def _say(self, trouble: str) -> None:
        """Log a warning, only once, because a run reports many times a second."""
        if not self._said:
            log.warning("%s", trouble)
        self._said = True

    def _write_origin(self, origin: Origin) -> None:
        write_json(self._origin_file, asdict(origin))

    def _lock(self, *, wait: bool) -> AbstractContextManager[None]:
        return locked(self.folder / "tracking.lock", wait=wait)


def close_run(folder: Path, status: Status) -> None:
    """Record how a run ended that could not report it itself (it was killed). `tracking.flush_spools` sends it."""
    spool = Spool(folder)
    if spool.origin() is not None:
        spool.append("status", {"status": status})


def _grouped(lines: Iterator[tuple[Line, int]]) -> Iterator[tuple[list[Line], int]]:
    """Yield groups that one call can send, each with its end offset.

    A group is at most `LINES_A_CALL` params, metrics and tags, or one line of another kind.
    """
    group: list[Line] = []
    group_end = 0
    for line, end in lines:
        alone = any(each.kind not in _TOGETHER for each in (line, *group[-1:]))
        if group and (alone or len(group) == LINES_A_CALL):
            yield group, group_end
            group = []
        group.append(line)
        group_end = end
    if group:
        yield group, group_end
