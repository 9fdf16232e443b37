"""`llava-mini bench data`: measures the data path against the usual ways and writes what was found."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from llava_mini.errors import UserError
from llava_mini.sweep.provenance import git_commit

_DATA = """\
Makes JPEGs and conversations, and measures reading them as a run does against the usual loader (JSON in memory, a file
an image, Pillow, floats) and against WebDataset; opening a set of three million samples; and building shards. Needs
1.3 GB in the folder for temporary files (TMPDIR) and, with the defaults, about ten minutes."""


def bench(arguments: list[str]) -> int:
    """Runs a bench.

    Returns:
        The exit status.

    Raises:
        UserError: a mistake in the arguments, or a library is missing.
    """
    options = _parser().parse_args(arguments)
    try:
        from llava_mini.bench.data_path import run
        from llava_mini.bench.plot import draw
        from llava_mini.bench.report import circumstances, table, write_report

        about = circumstances(git_commit())
    except ModuleNotFoundError as error:
        raise UserError(f"bench data needs {error.name}: pip install 'llava-mini-lab[bench]'") from None
    with tempfile.TemporaryDirectory(prefix="llava-mini-bench-") as work:
        found = run(Path(work), options.samples, options.rounds)
    write_report(found, options.out, about)
    draw(found, options.out / "data_path.png")
    print(f"{table(found, about)}\nwritten to {options.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llava-mini bench", description="Measures this program on this machine.")
    commands = parser.add_subparsers(required=True, metavar="command", title="commands")
    data = commands.add_parser("data", help="the data path against the usual ways", description=_DATA)
    data.add_argument("--samples", type=_positive, default=2000, metavar="N", help="made and read (default: 2000)")
    data.add_argument("--rounds", type=_positive, default=5, metavar="N", help="of all measurements (default: 5)")
    data.add_argument(
        "--out", type=Path, default=Path("experiments/003-data-path"), metavar="DIR",
        help="where table.md, results.json and data_path.png go (default: experiments/003-data-path)",
    )  # fmt: skip
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: allowed are whole numbers of 1 and above")
    return int(text)
