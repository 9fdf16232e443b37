"""`llava-mini <command> key=value ...`: reads the command line, resolves the config, calls the command.

Exit status:

- 2 for a user's mistake, with one line on standard error.
- 1 for a run that stops itself (non-finite loss, out of memory, a worker that died).
- 130 for Ctrl-C.
- 141 for output that nothing reads any more (`| head`).

Commands are imported when they are called, so that a mistake is reported before torch is loaded.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from pathlib import Path

from llava_mini.command_line.output import output_ends
from llava_mini.command_line.parser import Parser
from llava_mini.command_line.table import COMMANDS, CONFIGURED, HEADINGS, OUT, STRICT, VALUES, WITH_FLAGS
from llava_mini.data.errors import LoaderError, loader_failures_reported
from llava_mini.errors import UserError
from llava_mini.files import disk_errors_reported
from llava_mini.run.ranks import INTERRUPTED, OWN_MESSAGE, own_rank


@output_ends()
def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status.
    """
    given = [_at_home(each) for each in (sys.argv[1:] if argv is None else argv)]
    if not sys.stderr.isatty():  # transformers reads it on import: no progress bars for loading and saving weights
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if given and given[0] in CONFIGURED and {"-h", "--help"} & set(given[1:]):
        from llava_mini.config.reference import help_text

        print(CONFIGURED[given[0]], *([] if given[0] == "compare" else [help_text(), VALUES]), sep="\n\n")
        return 0
    if given and given[0] in WITH_FLAGS:
        arguments = argparse.Namespace(command=given[0], overrides=given[1:], config_dir=[])
    else:
        arguments = _read(given)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for folder in arguments.config_dir:
        if not Path(folder).is_dir():
            return _fail(f"--config-dir {folder}: no such folder")
    try:
        with loader_failures_reported(), disk_errors_reported():
            command = getattr(importlib.import_module(f"llava_mini.commands.{arguments.command}"), arguments.command)
            return int(command(arguments.overrides, tuple(arguments.config_dir)))
    except UserError as error:
        return _fail(str(error))
    except LoaderError as error:
        print(f"{OWN_MESSAGE}{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if own_rank() is None:  # else the process that started the ranks prints it
            print("interrupted; repeat the command to continue", file=sys.stderr)
        return INTERRUPTED


def _at_home(argument: str) -> str:
    """Return a flag's path with `~` expanded. A shell expands `~` only at the start of a word, not in --flag=~/here."""
    flag, equals, value = argument.partition("=")
    is_place = flag.startswith("--") and flag != "--question"
    return f"{flag}{equals}{os.path.expanduser(value)}" if is_place else argument


def _read(given: list[str]) -> argparse.Namespace:
    parser = _parser()
    arguments, unread = parser.parse_known_intermixed_args(given)
    if arguments.command in WITH_FLAGS:
        parser.error(f"{arguments.command} comes first and takes no --config-dir, {STRICT} or {OUT}")
    if unread:
        parser.error(f"unrecognized arguments: {' '.join(unread)}")
    if arguments.strict and arguments.command != "train":
        parser.error(f"{arguments.command} takes no --strict; allowed are train and plan")
    if arguments.out is not None and arguments.command != "sweep":
        parser.error(f"{arguments.command} takes no {OUT}")
    arguments.overrides += [STRICT] if arguments.strict else []
    arguments.overrides += [] if arguments.out is None else [f"{OUT}={arguments.out}"]
    return arguments


def _fail(message: str) -> int:
    print(f"{OWN_MESSAGE}{' '.join(message.split())}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    listing = "\n".join(
        "\n".join([f" {heading}", *(f"  {name:<10} {COMMANDS[name]}" for name in names)])
        for heading, names in HEADINGS.items()
    )
    parser = Parser(
        prog="llava-mini",
        description="Train, compare and ask LLaVA-Mini models.",
        epilog=f"commands (each has its own --help):\n{listing}\n\n{VALUES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config-dir", action="append", default=[], help="a further folder with config groups and code"
    )
    parser.add_argument(STRICT, action="store_true", help="train: status 2 when, as planned, it does not fit the card")
    parser.add_argument(OUT, metavar="DIR", help="sweep: its folder (default: sweeps/latest)")
    parser.add_argument("command", choices=COMMANDS, metavar="command", help="see below")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config values, see below")
    return parser
