"""`python -m llava_mini.gpu_check`: measure and plan every trial in separate processes and write a report."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

from llava_mini.bench.on_gpu import Measuring, check_folder, check_seconds, parser_for, print_result
from llava_mini.errors import UserError
from llava_mini.gpu_check.measure import check_packages, measured, planned
from llava_mini.gpu_check.report import write_report
from llava_mini.gpu_check.trials import TINY_TRIALS, TRIALS, Trial
from llava_mini.hardware import card_to_measure
from llava_mini.units import size_text


def main(argv: list[str] | None = None) -> int:
    """Run the trials.

    Returns:
        0 if all trials were measured, 1 if one was not, 2 for a user error.
    """
    parser = parser_for("llava_mini.gpu_check", __doc__, "experiments/005-gpu")
    parser.add_argument("--trial", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--plan", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    trials = TINY_TRIALS if given.tiny else TRIALS
    try:
        if given.trial is not None:
            print_result(_one(trials[given.trial], plan=given.plan, tiny=given.tiny))
            return 0
        results = check(trials, given.out, given.seconds, tiny=given.tiny)
    except UserError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 2
    return 0 if all(result["status"] == "measured" for result in results) else 1


def check(trials: tuple[Trial, ...], out: Path, seconds: float, *, tiny: bool) -> list[dict[str, Any]]:
    """Run trials and write results.json and table.md.

    Args:
        trials: Trials to run.
        out: Folder of the report.
        seconds: Time limit; after it, no trial is started, and the running one is ended.
        tiny: Whether the trials run on the CPU.

    Raises:
        UserError: there is no GPU, this torch does not support it, a package is missing, the folder cannot be written,
            or `seconds` is out of range.
    """
    check_seconds(seconds)
    check_packages()
    device = "CPU" if tiny else str(card_to_measure())
    check_folder(out)
    end, results = time.monotonic() + seconds, []
    for number, trial in enumerate(trials):
        results.append({"name": trial.name, "limit_gib": trial.limit_gib, **_both(number, end, tiny)})
        write_report(out, device, results)  # results so far are saved, whatever happens to the next trial
        print(f"{trial.name}: {_text(results[-1])}", flush=True)
    return results


def _one(trial: Trial, *, plan: bool, tiny: bool) -> dict[str, Any]:
    """Plan or measure one trial; runs in the trial's own process."""
    if plan:
        return planned(trial, on_gpu=not tiny)
    try:
        return measured(trial, torch.device("cpu" if tiny else "cuda"))
    except torch.OutOfMemoryError as error:
        return {"status": f"out of memory: {str(error).splitlines()[0]}"}


def _both(number: int, end: float, tiny: bool) -> dict[str, Any]:
    """Measure and plan a trial in parallel processes: the plan needs no GPU."""
    if time.monotonic() >= end:
        return {"status": "not run: no time left"}
    arguments = ["--trial", str(number), *(["--tiny"] if tiny else [])]
    running = [Measuring("llava_mini.gpu_check", [*arguments, *extra]) for extra in ([], ["--plan"])]
    try:
        measurement, plan = (_result(process, end) for process in running)
    finally:
        for process in running:
            process.end()
    if "status" in plan:  # only a plan that failed has a status
        return {**measurement, "plan": plan["status"]}
    return {**plan, **measurement}


def _result(process: Measuring, end: float) -> dict[str, Any]:
    found, status = process.results(max(end - time.monotonic(), 1))
    return found[0] if found else {"status": status or "failed: no output"}


def _text(result: dict[str, Any]) -> str:
    if result["status"] != "measured":
        return str(result["status"])
    plan = result.get("planned_bytes")
    said = f", planned {size_text(plan)} ({100 * (plan / result['peak_bytes'] - 1):+.1f} %)" if plan else ""
    return f"peak {size_text(result['peak_bytes'])}{said}, {result['samples_per_s']:.2f} samples/s"


if __name__ == "__main__":
    sys.exit(main())
