"""Output that cannot be written ends the command: quietly where nobody reads any more (`| head`), else in one line.

Python's own error is an OSError as of any file, and comes again when the buffer is emptied as Python ends.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO, cast

from llava_mini.commands.ranks import OWN_MESSAGE

NOBODY_READS = 128 + signal.SIGPIPE  # as a shell tells it of a program that this signal ends


@contextmanager
def output_ends() -> Iterator[None]:
    """Standard output and error, within, end the program when they cannot be written.

    Raises:
        SystemExit: they cannot; `NOBODY_READS`, or 2 when a line was printed that says why.
    """
    before = sys.stdout, sys.stderr
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
    """A stream of text that is another one but for its failures."""

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
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())  # for what is in the buffer still
        if isinstance(error, BrokenPipeError):
            raise SystemExit(NOBODY_READS) from error
        print(f"{OWN_MESSAGE}output cannot be written: {error.strerror}", file=sys.stderr)
        raise SystemExit(2) from error
