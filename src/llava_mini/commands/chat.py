"""`llava-mini chat MODEL [--image PATH ...]`: a conversation in the terminal, or with lines from a pipe."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

from llava_mini.command_line.asking import (
    FLAGS,
    LESS_MEMORY,
    add_media,
    add_session,
    add_source,
    load_model,
    open_session,
    opened,
    opened_one,
    parser_for,
)
from llava_mini.errors import UserError, named_as
from llava_mini.out_of_memory import oom_as_user_error

if TYPE_CHECKING:
    from llava_mini.inference.media_source import Media
    from llava_mini.inference.session import Session

_COMMANDS = "/image PATH, /video PATH, /forget (the conversation, not what was shown), /quit"
_DESCRIPTION = f"""\
A conversation about images and videos: every question knows of those before it. A line is a question, or one of
{_COMMANDS}.
Ctrl-C ends an answer, Ctrl-D the chat. Answers go to standard output, all else to standard error, so a chat can be
piped; a mistake is one line, and the chat continues."""


@oom_as_user_error(LESS_MEMORY)
def chat(arguments: list[str], _config_dirs: tuple[str, ...] = ()) -> int:
    """Run the command.

    Raises:
        UserError: the model or a file of the command line cannot be used, or they need more memory than is available.
    """
    parser = parser_for("chat", _DESCRIPTION)
    add_media(parser)
    add_session(parser)
    given = parser.parse_args(arguments)
    if sys.stdin is None:
        raise UserError("standard input is closed; allowed are a terminal, a file and a pipe, with a question a line")
    shown = opened(given)

    model, processor = load_model(given)
    session = open_session(given, model, processor)
    for source in shown:
        _tell(add_source(session, source, given))
    for line in _lines():
        try:
            if line == "/quit":
                break
            with oom_as_user_error(LESS_MEMORY):
                _turn(session, line, given)
        except UserError as error:
            _say(" ".join(str(error).split()))
        except KeyboardInterrupt:
            print(flush=True)  # ends the line of an interrupted answer
    if given.save is not None:
        session.save(given.save)
    return 0


@named_as(FLAGS)
def _turn(session: Session, line: str, given: argparse.Namespace) -> None:
    command, _, rest = line.partition(" ")
    if command in ("/image", "/video"):
        _tell(add_source(session, opened_one(command, rest.strip(), given), given))
    elif line == "/forget":
        session.forget()
    elif line.startswith("/"):
        raise UserError(f"{command}: unknown; there are {_COMMANDS}", key=command, allowed=_COMMANDS)
    else:
        with closing(session.stream(line, follow_up=True, max_new_tokens=given.max_new_tokens)) as pieces:
            for piece in pieces:
                print(piece, end="", flush=True)
        print(flush=True)


def _lines() -> Iterator[str]:
    """Yield the lines that are not empty, until the end of input."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a line that is not UTF-8 is refused later, as a question
    interactive = sys.stdin.isatty()
    if interactive:
        import readline  # noqa: F401  # gives `input` a history and line editing

        _say(_COMMANDS)
    while True:
        try:
            line = input("> ") if interactive else sys.stdin.readline()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            continue
        if not interactive and not line:
            return
        if line.strip():
            yield line.strip()


def _tell(look: Media) -> None:
    length = "" if look.seconds is None else f" of {look.seconds:.1f} s"
    _say(f"{look.kind}: {look.frames} frame{'' if look.frames == 1 else 's'}{length}")
    if look.stopped:
        _say(f"answers are about what could be read: {look.stopped}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
