"""`python -m llava_mini.gpu_check`: measure and plan every trial in separate processes and write a report."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from llava_mini.bench.on_gpu import check_folder, check_seconds, parser_for
from llava_mini.errors import UserError
from llava_mini.gpu_check.measure import check_packages, measured, planned
from llava_mini.gpu_check.report import write_report
from llava_mini.gpu_check.trials import TINY_TRIALS, TRIALS, Trial
from llava_mini.hardware import card_to_measure
from llava_mini.units import size_text

_RESULT = "gpu-check-result "  # prefix of the line in which a trial's process prints its result


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
            print(_RESULT + json.dumps(_one(trials[given.trial], plan=given.plan, tiny=given.tiny)))
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
        print(f"{trial.name}: {_told(results[-1])}", flush=True)
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
    command = [sys.executable, "-m", "llava_mini.gpu_check", "--trial", str(number), *(["--tiny"] if tiny else [])]
    running = [
        subprocess.Popen([*command, *extra], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for extra in ([], ["--plan"])
    ]
    try:
        measurement, plan = (_answer(process, end) for process in running)
    finally:
        for process in running:
            process.kill()
    if "status" in plan:  # only a plan that failed has a status
        return {**measurement, "plan": plan["status"]}
    return {**plan, **measurement}


def _answer(process: subprocess.Popen[str], end: float) -> dict[str, Any]:
    try:
        printed, errors = process.communicate(timeout=max(end - time.monotonic(), 1))
    except subprocess.TimeoutExpired:
        return {"status": "ended: no time left"}
    for line in printed.splitlines():
        if line.startswith(_RESULT):
            found: dict[str, Any] = json.loads(line.removeprefix(_RESULT))
            return found
    return {"status": f"failed: {(errors.strip() or 'no output').splitlines()[-1]}"}


def _told(result: dict[str, Any]) -> str:
    if result["status"] != "measured":
        return str(result["status"])
    plan = result.get("planned_bytes")
    said = f", planned {size_text(plan)} ({100 * (plan / result['peak_bytes'] - 1):+.1f} %)" if plan else ""
    return f"peak {size_text(result['peak_bytes'])}{said}, {result['samples_per_s']:.2f} samples/s"


if __name__ == "__main__":
    sys.exit(main())
