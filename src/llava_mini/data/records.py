"""LLaVA data as it is published, one record at a time: a JSON array or JSON Lines, told apart by their content.

A file is never held in memory. A line that is broken is one entry with a reason; an array that is broken ends there,
because nothing behind that place can be trusted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from llava_mini.errors import UserError

try:
    import ijson
except ImportError:
    ijson = None

_BOM = b"\xef\xbb\xbf"
_OTHER_CONTENT = {
    b"\x1f\x8b": "compressed by gzip",
    b"PK": "a zip archive",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_LONGEST_LINE = 64 * 2**20  # bytes; what is longer is no JSON Lines


@dataclass(frozen=True)
class Entry:
    """One record of a source file.

    Attributes:
        place: Where it stands, for people: `mix.jsonl line 17` or `mix.json record 17`; both count from 1.
        record: With `source`, its own or else the file's name without ending; None when it cannot be read. Fractions
            of an array are Decimal, since their digits are kept.
        reason: Why not.
    """

    place: str
    record: dict[str, Any] | None
    reason: str = ""


def read_records(path: Path) -> Iterator[Entry]:
    """The records of a LLaVA file in their order.

    Raises:
        UserError: the file cannot be read, is no JSON or JSON Lines in UTF-8, or holds an array that is broken.
    """
    try:
        with open(path, "rb") as file:
            start = _check_content(path, file)
            file.seek(start)
            is_array = file.read(4096).lstrip()[:1] == b"["
            file.seek(start)
            values = _array(path, file) if is_array else _lines(path, file)
            yield from values
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None


def _check_content(path: Path, file: BinaryIO) -> int:
    """Where the text begins."""
    head = file.read(4)
    found = next((content for magic, content in _OTHER_CONTENT.items() if head.startswith(magic)), None)
    if found:
        raise UserError(f"{path} is {found}; allowed: a JSON array or JSON Lines in UTF-8")
    return len(_BOM) if head.startswith(_BOM) else 0


def _array(path: Path, file: BinaryIO) -> Iterator[Entry]:
    if ijson is None:
        raise UserError("a JSON array needs ijson: pip install 'llava-mini-lab[data]'")
    number = 0
    try:
        for number, value in enumerate(ijson.items(file, "item"), 1):
            yield _entry(path, f"{path.name} record {number}", value)
    except ijson.JSONError as error:
        cause = " ".join(str(error).replace("(right here) ------^", "").split())
        raise UserError(
            f"{path} is broken behind its record {number}, within its first {file.tell()} bytes: {cause}"
        ) from None


def _lines(path: Path, file: BinaryIO) -> Iterator[Entry]:
    number = 0
    while line := file.readline(_LONGEST_LINE + 1):
        number += 1
        if len(line) > _LONGEST_LINE:
            raise UserError(
                f"{path} line {number} is longer than {_LONGEST_LINE} bytes: neither an array nor JSON Lines"
            )
        if not (line := line.rstrip()):
            continue
        place = f"{path.name} line {number}"
        try:
            value = json.loads(line, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            cause = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            yield Entry(place, None, f"not valid JSON ({cause})")
            continue
        yield _entry(path, place, value)


def _entry(path: Path, place: str, value: Any) -> Entry:
    if not isinstance(value, dict):
        return Entry(place, None, "not a JSON object")
    source = value.get("source")
    if not (source and isinstance(source, str)):
        value["source"] = path.stem
    return Entry(place, value)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")
