"""Flags and first checks that all commands which measure on a GPU share.

This module needs no package that a GPU machine may lack.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from llava_mini.errors import UserError

_LONGEST = 24 * 3600


def parser_for(module: str, description: str | None, out: str) -> argparse.ArgumentParser:
    """Return a parser with --out, --seconds and --tiny.

    Args:
        module: Name of the module that is run.
        description: Description of the module.
        out: Default folder of the report.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--out", type=Path, default=Path(out), help="folder of the report")
    parser.add_argument("--seconds", type=float, default=450, help="nothing runs for longer than this in all")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny shapes on the CPU: the command is tried, no GPU measured"
    )
    return parser


def check_seconds(seconds: float) -> None:
    """Raise UserError unless `seconds` is between 0 and one day."""
    if not 0 <= seconds <= _LONGEST:  # also refuses NaN
        raise UserError(f"--seconds {seconds:g}: allowed are 0 to {_LONGEST}")


def check_folder(out: Path) -> None:
    """Check before any measurement that the report can be written. The folder is created if it does not exist.

    Raises:
        UserError: the folder cannot be created or written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UserError(f"--out {out}: no folder that can be written ({error.strerror})") from error
