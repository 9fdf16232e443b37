"""What the commands that measure on a GPU share: flags, first checks, processes that measure, the head of a report.

This module needs no package that a GPU machine may lack.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from llava_mini.errors import UserError

_LONGEST = 24 * 3600
_RESULT = "measured: "  # prefix of the lines in which a process prints its results, one result per line


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


def print_result(result: dict[str, Any]) -> None:
    """Print a result for the process that waits for it (`Measuring`)."""
    print(_RESULT + json.dumps(result), flush=True)


class Measuring:
    """A process that measures and prints its results; nothing of it stays on the device when it has ended.

    Args:
        module: Module that is run.
        arguments: Its arguments.
    """

    def __init__(self, module: str, arguments: Sequence[str]):
        command = [sys.executable, "-m", module, *arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def results(self, seconds: float) -> tuple[list[dict[str, Any]], str]:
        """Wait for the process.

        Args:
            seconds: Time limit; after it the process is killed.

        Returns:
            What it has printed, also before a failure or timeout, and why it ended; "" if it ended by itself.
        """
        status = ""
        try:
            printed, errors = self._process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.end()
            printed, errors = self._process.communicate()
            status = "ended: no time left"
        if not status and self._process.returncode:
            status = f"failed: {(errors.strip() or 'no output').splitlines()[-1]}"
        found = [line.removeprefix(_RESULT) for line in printed.splitlines() if line.startswith(_RESULT)]
        return [json.loads(line) for line in found], status

    def end(self) -> None:
        """Kill the process, if it has not ended."""
        self._process.kill()


def head_of_report(device: str, packages: Sequence[str], more: str = "") -> tuple[dict[str, Any], str]:
    """Return device and versions, as a mapping and as a line.

    Args:
        device: Description of the GPU.
        packages: Names of the packages whose versions matter.
        more: Text for the end of the line.
    """
    versions = {name: version(name) for name in packages}
    named = ", ".join(f"{name} {number}" for name, number in versions.items())
    return {"device": device, "packages": versions}, f"{device}; CUDA {torch.version.cuda or 'none'}; {named}{more}."
