"""`python -m llava_mini.gpu_bench`: run every part in its own process; the report is updated after each part."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

from llava_mini.bench.on_gpu import Measuring, check_folder, check_seconds, parser_for, print_result
from llava_mini.errors import UserError
from llava_mini.gpu_bench.parts import PARTS
from llava_mini.gpu_bench.report import write_report
from llava_mini.gpu_bench.sizes import REAL, TINY
from llava_mini.hardware import card_to_measure


def main(argv: list[str] | None = None) -> int:
    """Run the bench.

    Returns:
        0 if everything was measured, 1 if something was not, 2 for a user error.
    """
    parser = parser_for("llava_mini.gpu_bench", __doc__, "experiments/006-efficiency")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    try:
        if given.part is not None:
            _measure(given.part, given.seconds, tiny=given.tiny)
            return 0
        rows = bench(given.out, given.seconds, tiny=given.tiny)
    except UserError as error:
        print(f"gpu-bench: {error}", file=sys.stderr)
        return 2
    return 0 if all(row["status"] == "measured" for row in rows) else 1


def bench(out: Path, seconds: float, *, tiny: bool) -> list[dict[str, Any]]:
    """Run all parts and write gpu.json and gpu.md.

    Args:
        out: Folder of the report.
        seconds: Time limit; after it, the running part is ended. Each part gets its share of the remaining time.
        tiny: Whether tiny shapes run on the CPU.

    Raises:
        UserError: there is no GPU, this torch does not support it, the folder cannot be written, or `seconds` is out
            of range.
    """
    check_seconds(seconds)
    device = "CPU, tiny shapes: no figure of it means anything" if tiny else str(card_to_measure())
    check_folder(out)
    end, rows, text = time.monotonic() + seconds, list[dict[str, Any]](), ""
    shares = [share for _, share in PARTS.values()]
    for number, name in enumerate(PARTS):
        left = end - time.monotonic()
        rows += _part(name, left * shares[number] / sum(shares[number:]), tiny=tiny)
        text = write_report(out, device, rows)  # results so far are saved, whatever happens to the next part
        print(f"{name}: done", file=sys.stderr, flush=True)
    print(text)
    return rows


def _measure(part: str, seconds: float, *, tiny: bool) -> None:
    """Run one part and print its rows; runs in the part's own process."""
    run, _ = PARTS[part]
    size, device = (TINY, "cpu") if tiny else (REAL, "cuda")
    torch.manual_seed(0)
    for row in run(size, torch.device(device), time.monotonic() + seconds):
        print_result(row)


def _part(name: str, seconds: float, *, tiny: bool) -> list[dict[str, Any]]:
    """Run a part in its own process and return its rows, including those before a failure or timeout."""
    arguments = ["--part", name, "--seconds", str(0.9 * seconds), *(["--tiny"] if tiny else [])]
    process = Measuring("llava_mini.gpu_bench", arguments)
    try:
        rows, status = process.results(seconds)
    finally:
        process.end()
    return [*rows, {"task": name, "status": status}] if status else rows


if __name__ == "__main__":
    sys.exit(main())
