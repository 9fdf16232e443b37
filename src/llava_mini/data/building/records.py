"""Reads published records one at a time from a JSON array or JSON Lines, which are distinguished by their content.

A file is never in memory as a whole. A broken line is one entry with a reason. A broken array ends at that place,
because nothing after it can be trusted.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from llava_mini.errors import UserError
from llava_mini.files import reading
from llava_mini.units import MIB

_BOM = b"\xef\xbb\xbf"
_OTHER_CONTENT = {
    b"\x1f\x8b": "compressed by gzip",
    b"PK": "a zip archive",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_LONGEST_LINE = 64 * MIB  # bytes; anything longer is neither JSON Lines nor a record
_CHUNK = 2**16
_HEAD = 2**14
_FORMS = tuple(f'"{key}"'.encode() for key in ("conversations", "messages", "instruction", "query"))
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"\s*:?|[{}\[\]]')  # texts, keys with their colon, brackets
_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True)
class Entry:
    """One record of a source file.

    Attributes:
        place: Place of the record, for people: `mix.jsonl line 17` or `mix.json record 17`; both count from 1.
        record: Content of the record, with `source`, its own (a text or an integer) or else the file's name without
            extension; None when the record cannot be read.
        reason: Reason why the record cannot be read.
    """

    place: str
    record: dict[str, Any] | None
    reason: str = ""

    @property
    def name(self) -> str:
        """Name of the record where it is rejected: its own id if it has one, and its place."""
        own = (self.record or {}).get("id")
        return f"{own} ({self.place})" if isinstance(own, str | int) and own != "" else self.place


def read_records(path: Path) -> Iterator[Entry]:
    """Yield the records of a file in their order.

    Raises:
        UserError: The file cannot be read, is not JSON or JSON Lines in UTF-8, or contains a broken array.
    """
    with reading(path), open(path, "rb") as file:
        start = _check_content(path, file)
        file.seek(start)
        is_array = file.read(4096).lstrip()[:1] == b"["
        file.seek(start)
        if not is_array and (key := _wrapping_key(file.read(_HEAD))):
            raise UserError(
                f"{path} is one object that contains the records as its {key}: save that value alone;"
                " allowed: a JSON array of records or JSON Lines"
            )
        file.seek(start)
        yield from _array(path, file) if is_array else _lines(path, file)


def _check_content(path: Path, file: BinaryIO) -> int:
    """Check the type of a file, and return the offset at which its text begins."""
    head = file.read(4)
    found = next((content for magic, content in _OTHER_CONTENT.items() if head.startswith(magic)), None)
    if found:
        raise UserError(f"{path} is {found}; allowed: a JSON array or JSON Lines in UTF-8")
    return len(_BOM) if head.startswith(_BOM) else 0


def _wrapping_key(head: bytes) -> str:
    """Return the key "data" of a file like {"info": {}, "data": [{"conversations": ...}, ...]}; "" for JSON Lines.

    The key is found by the depth of the first `conversations` (or `messages`): such a file may be too large to be
    parsed at once.
    """
    depth, outer, found = 0, b"", b""
    for token in _TOKEN.findall(head):
        if token in b"{[":
            depth += 1
        elif token in b"]}":
            depth -= 1
            if depth <= 0:  # the first object has ended
                break
        elif token.endswith(b":") and depth == 1:
            if token.startswith(_FORMS):
                return ""
            outer = token
        elif depth == 3 and token.startswith(_FORMS) and token.endswith(b":"):
            found = found or outer
    return found.rstrip(b": \t\r\n").decode(errors="replace")


def _array(path: Path, file: BinaryIO) -> Iterator[Entry]:
    text = _Text(path, file)
    text.skip("[")
    faults: list[str] = []
    decoder = json.JSONDecoder(
        parse_constant=partial(_no_value, faults),
        parse_int=partial(_whole_number, faults),
        object_pairs_hook=partial(_noted_pairs, faults),
    )
    number, name = 0, _readable_name(path)
    while text.next_is_not("]"):
        if number:
            text.skip(",")
        number += 1
        value = text.value(decoder)
        place = f"{name} record {number}"
        yield Entry(place, None, f"not valid JSON ({faults[0]})") if faults else _entry(path, place, value)
        faults.clear()
    text.skip("]")
    text.end()


class _Text:
    """Text of a file, of which no more is in memory than one value takes and is read at once."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._held, self._place, self._before, self._all_read = "", 0, 0, False

    def value(self, decoder: json.JSONDecoder) -> Any:
        """Return the next value."""
        self._to_content()
        while True:
            try:
                value, end = decoder.raw_decode(self._held, self._place)
            except json.JSONDecodeError as error:
                if self._all_read or len(self._held) - self._place > _LONGEST_LINE:
                    self._broken(error.msg, error.pos)
            except RecursionError:
                self._broken("nested too deeply", self._place)
            else:
                if end < len(self._held) or self._all_read:  # else a number may continue
                    self._place = end
                    return value
            self._read_more()

    def next_is_not(self, character: str) -> bool:
        """Whether the next character is another than `character`."""
        return self._to_content() != character

    def skip(self, character: str) -> None:
        """Skip `character`, which must come next."""
        if found := self.next_is_not(character) and (self._held[self._place : self._place + 1] or "the end"):
            self._broken(f"{found!r} instead of {character!r}", self._place)
        self._place += 1

    def end(self) -> None:
        """Check that nothing follows."""
        if found := self._to_content():
            self._broken(f"{found!r} after the array", self._place)

    def _to_content(self) -> str:
        """Return the next character that is not white space; empty at the end."""
        while True:
            self._place = _SPACE.match(self._held, self._place).end()  # type: ignore[union-attr]  # it always matches
            if self._place < len(self._held) or self._all_read:
                return self._held[self._place : self._place + 1]
            self._read_more()

    def _read_more(self) -> None:
        # Read as much again as is in memory, so that a long value is not parsed once for every chunk of it.
        raw = self._file.read(max(_CHUNK, len(self._held) - self._place))
        self._all_read = not raw
        self._before += self._place
        try:
            self._held = self._held[self._place :] + self._decode(raw, final=self._all_read)
        except UnicodeDecodeError as error:
            self._broken(f"not UTF-8 ({error.reason})", len(self._held))
        self._place = 0

    def _broken(self, cause: str, place: int) -> NoReturn:
        raise UserError(f"{self._path} is a broken array, at character {self._before + place + 1}: {cause}")


def _lines(path: Path, file: BinaryIO) -> Iterator[Entry]:
    number, name = 0, _readable_name(path)
    while line := file.readline(_LONGEST_LINE + 1):
        number += 1
        if len(line) > _LONGEST_LINE:
            raise UserError(
                f"{path} line {number} is longer than {_LONGEST_LINE} bytes: neither an array nor JSON Lines"
            )
        if not (line := line.rstrip()):
            continue
        place = f"{name} line {number}"
        try:
            value = json.loads(line, parse_constant=_no_constant, object_pairs_hook=single_keys)
        except (ValueError, RecursionError) as error:
            cause = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            yield Entry(place, None, f"not valid JSON ({cause})")
            continue
        yield _entry(path, place, value)


def _entry(path: Path, place: str, value: Any) -> Entry:
    if not isinstance(value, dict):
        return Entry(place, None, "not a JSON object")
    source = value.get("source")
    if source is None or source == "":
        return Entry(place, {**value, "source": Path(_readable_name(path)).stem})
    if not isinstance(source, str) and type(source) is not int:  # JSON's true is not a number
        return Entry(place, None, f"source is neither a text nor a whole number: {json.dumps(source)[:40]}")
    return Entry(place, value)


def single_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object (`object_pairs_hook`); of two values of a key, json would silently drop the first.

    Raises:
        ValueError: A key occurs twice.
    """
    fields = dict(pairs)
    if len(fields) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for place, key in enumerate(keys) if key in keys[:place])
        raise ValueError(f"{json.dumps(twice[:40])} is twice in an object")
    return fields


def _noted_pairs(faults: list[str], pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    try:
        return single_keys(pairs)
    except ValueError as error:
        faults.append(str(error))
        return {}


def _readable_name(path: Path) -> str:
    """Return a file's name as valid text for records; the name may not be UTF-8, or the locale may lack UTF-8."""
    return os.fsencode(path.name).decode(errors="replace")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _no_value(faults: list[str], name: str) -> None:
    """Note a fault of a value whose end must still be found."""
    faults.append(f"{name} is no JSON value")


def _whole_number(faults: list[str], digits: str) -> int:
    try:
        return int(digits)
    except ValueError:  # Python refuses thousands of digits
        faults.append(f"a number of {len(digits)} digits")
        return 0
