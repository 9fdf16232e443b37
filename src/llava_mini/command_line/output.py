"""End the command when output cannot be written: silently if its reader is gone (`| head`), else with one line.

Python's own error is an OSError like that of any file. It comes again when Python flushes the buffer at exit.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO, cast

from llava_mini.run.ranks import OWN_MESSAGE

BROKEN_PIPE = 128 + signal.SIGPIPE  # the status a shell reports for a program that this signal ends


def json_line(value: Any) -> str:
    """Return a value as one line of JSON, with non-ASCII text unescaped if the output encoding is a Unicode one."""
    return json.dumps(value, ensure_ascii=not writes_any_text())


def writes_any_text() -> bool:
    """Return whether standard output can write every character."""
    return (sys.stdout.encoding or "").lower() == "utf-8"


@contextmanager
def output_ends() -> Iterator[None]:
    """End the program when standard output or error cannot be written within the block.

    Raises:
        SystemExit: they cannot be written; status `BROKEN_PIPE`, or 2 after a line that says why.
    """
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # an answer must not be lost to a locale
    sys.stdout, sys.stderr = (
        stream and cast(TextIO, _Ending(stream)) for stream in before
    )  # None: closed from the start
    try:
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
    finally:
        sys.stdout, sys.stderr = before


class _Ending:
    """Wrapper of a text stream that ends the program when a write fails."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._end(error)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._end(error)

    def _end(self, error: OSError) -> NoReturn:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())  # for what is still in the buffer
        if isinstance(error, BrokenPipeError):
            raise SystemExit(BROKEN_PIPE) from error
        print(f"{OWN_MESSAGE}output cannot be written: {error.strerror}", file=sys.stderr)
        raise SystemExit(2) from error
