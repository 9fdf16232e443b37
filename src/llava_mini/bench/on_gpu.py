"""What the commands that measure on a GPU have in common: their flags, and what is seen to before they begin.

It needs no package that a GPU machine may lack.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from llava_mini.errors import UserError

_LONGEST = 24 * 3600


def parser_for(module: str, description: str | None, out: str) -> argparse.ArgumentParser:
    """A parser with --out, --seconds and --tiny.

    Args:
        module: That is run.
        description: Of it.
        out: Where the report goes when nobody says.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--out", type=Path, default=Path(out), help="folder of the report")
    parser.add_argument("--seconds", type=float, default=450, help="nothing goes on for longer than this in all")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny shapes on the CPU: the command is tried, no GPU measured"
    )
    return parser


def check_seconds(seconds: float) -> None:
    """Raises UserError unless it is a number of seconds, of a day at most."""
    if not 0 <= seconds <= _LONGEST:  # NaN too
        raise UserError(f"--seconds {seconds:g}: allowed are 0 to {_LONGEST}")


def check_folder(out: Path) -> None:
    """Find out before anything is measured whether the report can be written; the folder is made if it is not there.

    Raises:
        UserError: it cannot.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UserError(f"--out {out}: no folder that can be written ({error.strerror})") from error
