"""The journal between a run and its tracker: what a run reports is written here first and sent from here.

`spool.jsonl` in the run's folder holds one line per report, in order, and is only ever appended to; `tracking.json`
beside it says where the lines go and how many bytes of them are sent. Both survive `kill -9`: whoever comes
next goes on where the sending stopped. What needs more than the tracker itself, such as files, which go to an artifact
store, is sent after the rest and counted apart: a store that takes no files holds back no metric.
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
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from llava_mini.errors import UserError
from llava_mini.files import locked, read_json, write_json

log = logging.getLogger("llava_mini.tracking")

LINES_A_CALL = 100

Kind = Literal["params", "metrics", "tags", "status", "inputs", "file", "view"]
Status = Literal["FINISHED", "FAILED", "KILLED"]
Lane = Literal["reports", "extras"]
LANES: tuple[Lane, Lane] = ("reports", "extras")

_EXTRAS = ("inputs", "file", "view")
_TOGETHER = ("params", "metrics", "tags")  # one call sends many of these


def check_tracker(key: str, otherwise: str) -> None:
    """See that MLflow is installed, without the seconds that importing it takes.

    Args:
        key: What asks for it, for the message.
        otherwise: How to do without.

    Raises:
        UserError: it is not.
    """
    if find_spec("mlflow") is None:
        raise UserError(f"{key}: mlflow is not installed: pip install mlflow; or {otherwise}")


@dataclass(frozen=True)
class Line:
    """One report: its kind, when it was made (milliseconds since 1970), the step it belongs to, the values."""

    kind: Kind
    time_ms: int
    step: int
    values: dict[str, Any]


@dataclass(frozen=True)
class DataInput:
    """A data set that a run reads.

    Attributes:
        name: the set's name.
        fingerprint: hexadecimal hash of its content.
        source: where it lies, a path or a URL.
        samples: how many it has.
        context: what the run reads it for: training, validation, test.
    """

    name: str
    fingerprint: str
    source: str
    samples: int
    context: str


@dataclass
class Origin:
    """What `tracking.json` holds.

    Attributes:
        uri: the tracker.
        experiment: the tracker's experiment.
        name: the run's name there.
        parent_run_id: the run under which this one is shown.
        token: names this spool; finds its run again if the answer to "create it" was lost.
        run_id: the run's id, once it could be made.
        sent_bytes: up to where the reports in `spool.jsonl` are sent.
        sent_extras_bytes: up to where its inputs, files and views are.
    """

    uri: str
    experiment: str
    name: str
    parent_run_id: str | None = None
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    run_id: str | None = None
    sent_bytes: int = 0
    sent_extras_bytes: int = 0


class Spool:
    """The journal in one run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.journal = self.folder / "spool.jsonl"
        self._origin_file = self.folder / "tracking.json"
        self._said = False

    def create(self, origin: Origin) -> None:
        """Starts the journal; one that is there already (of a resumed run) goes on and keeps its token and run.

        On a full disk nothing is kept and a warning says so: a report is never what a run ends for.
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
        """Adds a line; one that the disk does not take is lost, with one warning for all."""
        line = Line(kind, int(time.time() * 1000), step, dict(values))
        try:
            self._append(json.dumps(asdict(line), default=str).encode() + b"\n")
        except OSError as error:
            self._warn(error)

    def pending(self, *lanes: Lane) -> int:
        """The number of lines that are not sent, of `lanes` or else of all; 0 for a folder without a journal."""
        origin = self.origin()
        return 0 if origin is None else sum(1 for lane in lanes or LANES for _ in self._unsent(origin, lane))

    def inputs(self) -> list[DataInput]:
        """The data sets that the run has reported, sent or not."""
        lines = self._lines(0) if self.origin() is not None else ()
        found = [DataInput(**each) for line, _ in lines if line.kind == "inputs" for each in line.values["datasets"]]
        return list(dict.fromkeys(found))

    def redirect(self, uri: str | None, parent_run_id: str | None) -> None:
        """From now on sends to `uri`, and all lines anew if that is another place; None changes nothing."""
        with self._lock(wait=True):
            origin = self.origin()
            if origin is None:
                return
            if uri is not None and uri != origin.uri:
                origin.uri, origin.run_id, origin.sent_bytes, origin.sent_extras_bytes = uri, None, 0, 0
            origin.parent_run_id = parent_run_id or origin.parent_run_id
            self._write_origin(origin)

    def deliver(self, lane: Lane, create: Callable[[Origin], str], send: Callable[[Origin, list[Line]], None]) -> None:
        """Sends in order what is not sent, and notes after each call how far it came.

        Args:
            lane: which lines: params, metrics, tags and status; or inputs, files and views.
            create: makes the run, returns its id.
            send: sends lines to `origin.run_id`: at most `LINES_A_CALL` params, metrics and tags, any other line alone.

        Raises:
            BlockingIOError: another thread or process is delivering this journal.
            Exception: whatever `create` and `send` raise; what was sent before stays noted.
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
        """Where the journal goes; None for a folder without one, and for one that cannot be read, which is a warning.

        A report is never what a run ends for; what a crash has left in place of an origin is begun anew.
        """
        if not self._origin_file.exists():
            return None
        try:
            return Origin(**read_json(self._origin_file))
        except UserError as error:
            self._say(f"{error}; reports to MLflow begin anew")
        except TypeError:
            self._say(f"{self._origin_file} is of another version; reports to MLflow begin anew")
        return None

    def run_id(self) -> str | None:
        """The tracker's run; None where it could not be made yet."""
        origin = self.origin()
        return None if origin is None else origin.run_id

    def _unsent(self, origin: Origin, lane: Lane) -> Iterator[tuple[Line, int]]:
        """Lines of `lane` that are not sent, each with the offset of its end."""
        extras = lane == "extras"
        for line, end in self._lines(origin.sent_extras_bytes if extras else origin.sent_bytes):
            if (line.kind in _EXTRAS) == extras:
                yield line, end

    def _lines(self, start: int) -> Iterator[tuple[Line, int]]:
        """Whole lines after `start`, each with the offset of its end; a line cut by a kill is passed over."""
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
                if journal.read(1) != b"\n":  # the writer before was killed within a line, or its disk was full
                    raw = b"\n" + raw
            if journal.write(raw) < len(raw):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _warn(self, error: OSError) -> None:
        self._say(f"{self.journal} cannot be written ({error.strerror}); reports to MLflow are lost")

    def _say(self, trouble: str) -> None:
        """Once: a run reports many times a second."""
        if not self._said:
            log.warning("%s", trouble)
        self._said = True

    def _write_origin(self, origin: Origin) -> None:
        write_json(self._origin_file, asdict(origin))

    def _lock(self, *, wait: bool) -> AbstractContextManager[None]:
        return locked(self.folder / "tracking.lock", wait=wait)


def close_run(folder: Path, status: Status) -> None:
    """Notes how a run ended that could not say so itself (it was killed); `tracking.flush_spools` sends it."""
    spool = Spool(folder)
    if spool.origin() is not None:
        spool.append("status", {"status": status})


def _grouped(lines: Iterator[tuple[Line, int]]) -> Iterator[tuple[list[Line], int]]:
    """Groups that one call can send, each with its end: at most `LINES_A_CALL` lines, or one of its own kind alone."""
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
