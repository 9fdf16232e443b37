"""`llava-mini bench`: measures this program against the usual ways and writes what was found."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from llava_mini.errors import UserError
from llava_mini.sweep.provenance import git_commit

_DATA = """\
Makes JPEGs and conversations, and measures reading them as a run does against the usual loader (JSON in memory, a file
an image, Pillow, floats) and against WebDataset; opening a set of three million samples; and building shards. Needs
1.3 GB in the folder for temporary files (TMPDIR) and, with the defaults, about ten minutes."""

_MEMORY = """\
Bytes of an image and of a session of 10,000 frames at 7B and 8B, by arithmetic; and the peak memory of small models
against the number of frames, a process a point. Takes a few minutes."""


def bench(arguments: list[str]) -> int:
    """Runs a bench.

    Returns:
        The exit status.

    Raises:
        UserError: a mistake in the arguments, or a library is missing.
    """
    options = _parser().parse_args(arguments)
    try:
        from llava_mini.bench.report import circumstances

        about = circumstances(git_commit())
        text: str = options.run(options, about)
    except ModuleNotFoundError as error:
        raise UserError(f"bench {options.command} needs {error.name}: pip install 'llava-mini-lab[bench]'") from None
    print(f"{text}\nwritten to {options.out}")
    return 0


def _data(options: argparse.Namespace, about: dict[str, Any]) -> str:
    from llava_mini.bench.data_path import run
    from llava_mini.bench.plot import draw
    from llava_mini.bench.report import table, write_report

    with tempfile.TemporaryDirectory(prefix="llava-mini-bench-") as work:
        found = run(Path(work), options.samples, options.rounds)
    write_report(found, options.out, about)
    draw(found, options.out / "data_path.png")
    return table(found, about)


def _memory(options: argparse.Namespace, about: dict[str, Any]) -> str:
    from llava_mini.bench.memory import session_plans, visual_states
    from llava_mini.bench.memory_report import write_memory
    from llava_mini.bench.peak_memory import measure

    return write_memory(options.out, visual_states(), session_plans(), measure(), about)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llava-mini bench", description="Measures this program on this machine.")
    commands = parser.add_subparsers(required=True, metavar="command", title="commands", dest="command")
    data = commands.add_parser("data", help="the data path against the usual ways", description=_DATA)
    data.set_defaults(run=_data)
    data.add_argument("--samples", type=_positive, default=2000, metavar="N", help="made and read (default: 2000)")
    data.add_argument("--rounds", type=_positive, default=5, metavar="N", help="of all measurements (default: 5)")
    data.add_argument(
        "--out", type=Path, default=Path("experiments/003-data-path"), metavar="DIR",
        help="where table.md, results.json and data_path.png go (default: experiments/003-data-path)",
    )  # fmt: skip
    memory = commands.add_parser("memory", help="memory of images, frames and sessions", description=_MEMORY)
    memory.set_defaults(run=_memory)
    memory.add_argument(
        "--out", type=Path, default=Path("experiments/006-efficiency"), metavar="DIR",
        help="where memory.md, memory.json and memory.png go (default: experiments/006-efficiency)",
    )  # fmt: skip
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: allowed are whole numbers of 1 and above")
    return int(text)
