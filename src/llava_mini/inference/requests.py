"""Requests and answers of a batch, one JSON object a line; stored answers stay, however often a run is killed.

A request has an id, and every record repeats what was asked. A stored answer is refused if the request with its id now
asks something else. Answers are appended, so a killed run leaves at most one incomplete line. That line is cut off, and
its request is answered again. Two processes cannot write the same answers.
"""

from __future__ import annotations

import codecs
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from filelock import lock_descriptor

from llava_mini.data.building.records import single_keys
from llava_mini.errors import UserError
from llava_mini.files import is_url, reading

Id = str | int
Record = dict[str, Any]

_MEDIA = ("image", "video")
_ASKED = (*_MEDIA, "question")
_FIELDS = ("id", *_ASKED)
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # first bytes; UTF-32 begins the same way, or with a null byte


@dataclass(frozen=True)
class Request:
    """One question about any number of images and videos; its id is the given one, or the number of the line.

    `media` has the fields `image` and `video` as they are written; relative paths are in the folder of the requests.
    `refused` says why the request cannot be asked; None if nothing is wrong so far.
    """

    id: Id
    question: str = ""
    images: tuple[Path, ...] = ()
    videos: tuple[Path, ...] = ()
    refused: str | None = None
    media: Mapping[str, str | list[str]] = field(default_factory=dict)

    def record(self, **found: str) -> Record:
        """Return the record of the request: its id, what it asks, and what was found."""
        return {"id": self.id, **self.asked, **found}

    @property
    def asked(self) -> Record:
        """Fields that an earlier answer to this request must repeat; empty if the request cannot be asked."""
        return {} if self.refused else {**self.media, "question": self.question}


def read_requests(path: Path) -> list[Request]:
    """Return the requests of a file in order, including those that cannot be asked; empty lines are skipped.

    One without a readable id is named "line N", or "line N (2)" if that id is taken.

    Raises:
        UserError: the file cannot be read, is UTF-16, UTF-32 or no text, or two requests have the same id.
    """
    requests: list[Request] = []
    lines: dict[Id, int] = {}
    nameless: dict[int, int] = {}  # place among the requests -> line
    with reading(path), path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1 and (line.startswith(_UTF_16) or b"\0" in line or _is_binary(line)):
                raise UserError(f"{path}: UTF-16, UTF-32 or no text at all; allowed is UTF-8")
            if line.strip():
                request = _request(line, number, path.parent)
                if isinstance(request, str):
                    nameless[len(requests)] = number
                    request = Request("", refused=request)
                elif (first := lines.setdefault(request.id, number)) != number:
                    raise UserError(f"{path}: lines {first} and {number} have the same id {request.id!r}")
                requests.append(request)
    for place, number in nameless.items():
        name, count = f"line {number}", 1
        while name in lines:
            count += 1
            name = f"line {number} ({count})"
        lines[name] = number
        requests[place] = replace(requests[place], id=name)
    return requests


def _request(line: bytes, number: int, folder: Path) -> Request | str:
    """Return the request of a line, perhaps a refused one; or why the line has no id that can be read."""
    try:
        fields = json.loads(line, object_pairs_hook=single_keys)
    except (ValueError, RecursionError) as error:
        return f"no JSON: {error}"
    if not isinstance(fields, dict):
        return "no JSON object"
    given = number if fields.get("id") is None else fields["id"]
    if isinstance(given, bool) or not isinstance(given, (str, int)):
        return "id is neither text nor a whole number"
    if not _is_unicode(str(given)):
        return "id is no Unicode text"
    question = fields.get("question")
    if unknown := sorted(fields.keys() - set(_FIELDS)):
        return Request(given, refused=f"unknown field {unknown[0]!r}; allowed are {', '.join(_FIELDS)}")
    if not isinstance(question, str):
        return Request(given, refused="no question")
    images, videos = (_paths(fields.get(name), folder) for name in _MEDIA)
    if images is None or videos is None:
        return Request(given, question, refused="image and video must be a path or a list of paths")
    named = [fields[name] for name in _MEDIA if fields.get(name)]
    if addresses := [name for each in named for name in ([each] if isinstance(each, str) else each) if is_url(name)]:
        return Request(given, refused=f"{addresses[0][:200]}: a URL; only files are read, so fetch it first")
    if not all(_is_unicode(str(path)) for path in (*images, *videos)):
        return Request(given, refused="a path is no Unicode text")
    return Request(given, question, images, videos, media={name: fields[name] for name in _MEDIA if fields.get(name)})


def _paths(value: Any, folder: Path) -> tuple[Path, ...] | None:
    paths = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(each, str) and each for each in paths):
        return None
    return tuple(folder / each for each in paths)


def _is_binary(line: bytes) -> bool:
    """Whether a line is neither UTF-8 nor the beginning of an object with a damaged text."""
    try:
        line.decode()
    except UnicodeDecodeError:
        return not line.lstrip().startswith(b"{")
    return False


def _is_unicode(text: str) -> bool:
    """Whether a text is valid Unicode: not with a lone surrogate, which JSON can spell and no file can contain."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Answers:
    """Records of this run and of earlier runs, in one file, with the ids of answered and of failed requests."""

    def __init__(self, path: Path, file: BinaryIO, requests: Sequence[Request]) -> None:
        self._path, self._file = path, file
        self.answered: set[Id] = set()
        self.failed: set[Id] = set()
        asked = {request.id: request.asked for request in requests}
        file.seek(0)
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                self._count(self._earlier(line, number, asked))
            else:
                self._cut_off(line, number, asked)

    def __contains__(self, request: Request) -> bool:
        return request.id in self.answered or request.id in self.failed

    def add(self, records: Iterable[Record]) -> None:
        """Append records; when this returns, they survive a crash of the process and of the machine.

        Raises:
            UserError: the file cannot be written, for example on a full disk; earlier records stay, and a run resumes.
        """
        records = list(records)
        rest = b"".join(_written(record) + b"\n" for record in records)
        try:
            while rest:  # not through the file's own buffer, whose rest closing would try, and fail, to write again
                rest = rest[os.write(self._file.fileno(), rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UserError(
                f"{self._path}: cannot be written ({error.strerror}); what is in it is kept, the same command continues"
            ) from error
        for record in records:
            self._count(record)

    def _count(self, record: Record) -> None:
        (self.failed if "error" in record else self.answered).add(record["id"])

    def _cut_off(self, torn: bytes, number: int, asked: dict[Id, Record]) -> None:
        """Remove a last line without its end, if a killed run may have left it of a record."""
        heads = (_written({"id": given})[:-1] + b", " for given in asked)
        if not any(torn.startswith(head) or head.startswith(torn) for head in heads):
            raise UserError(f"{self._path}: line {number} contains something else than answers; name another file")
        try:
            json.loads(torn)
        except (ValueError, RecursionError):
            pass
        else:
            self._earlier(torn, number, asked)  # a complete object must be a record
        self._file.truncate(os.fstat(self._file.fileno()).st_size - len(torn))

    def _earlier(self, line: bytes, number: int, asked: dict[Id, Record]) -> Record:
        try:
            record = json.loads(line)
            given, of_a_request = record["id"], record["id"] in asked
            _ = record["error" if "error" in record else "answer"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise UserError(f"{self._path}: line {number} is no answer; name another file for the answers") from None
        said = {name: record[name] for name in _ASKED if name in record}
        if not of_a_request or said != asked[given] or given in (self.answered | self.failed):
            other = "another request than the one that has" if of_a_request else "a request that is no more, with"
            raise UserError(
                f"{self._path}: line {number} answers {other} the id {given!r}; "
                "delete the line or name another file for the answers"
            )
        return dict(record)


@contextmanager
def open_answers(path: Path, requests: Sequence[Request]) -> Iterator[Answers]:
    """Open the answers to requests, a new file or one to resume; for one process at a time.

    Raises:
        UserError: the file cannot be written, is in use, or contains something else than answers to these requests.
    """
    created = not os.path.lexists(path)
    try:
        file = path.open("a+b")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise UserError(
                f"{path}: cannot be written (no file, answers must be kept, or the file cannot be continued)"
            )
        try:
            alone = lock_descriptor(file.fileno(), blocking=False)
        except OSError as error:
            raise UserError(f"{path}: cannot be locked ({error.strerror})") from error
        if not alone:
            raise UserError(f"{path}: another process is writing to it")
        try:
            with reading(path):
                answers = Answers(path, file, requests)
            yield answers
        finally:
            if created and os.fstat(file.fileno()).st_size == 0:
                path.unlink(missing_ok=True)  # nothing was answered, for whatever reason


def _written(record: Record) -> bytes:
    """Return a record as JSON; characters of a path that are no Unicode text are escaped."""
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace")
