"""The stand-in for `llava-mini train`, as a module, and a sweep that is run with it."""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llava_mini.sweep.folder import Sweep, record_failure, run_folder, write_sweep
from llava_mini.sweep.grid import Run, expand
from llava_mini.sweep.launcher import LocalLauncher
from llava_mini.sweep.runner import run_sweep
from llava_mini.tracking.mlflow import MLflow

Accuracy = float | dict[str, float]
Training = dict[str, Any]
STANDIN = Path(__file__).with_name("standin.py")


@pytest.fixture(scope="session")
def standin() -> ModuleType:
    spec = importlib.util.spec_from_file_location("standin", STANDIN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def is_running() -> Callable[[int], bool]:
    """Whether a process is there and no zombie."""

    def check(pid: int) -> bool:
        try:
            return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return False

    return check


@pytest.fixture
def sweep(standin: ModuleType, tmp_path: Path) -> Callable[..., tuple[int, list[str]]]:
    """sweep(*arguments, code_version=..., ...): runs it in tmp_path/sweep; exit status and lines said."""

    def run(
        *arguments: str,
        code_version: str = standin.CODE_VERSION,
        tracker_uri: str | None = None,
        idle_timeout: float | None = None,
    ) -> tuple[int, list[str]]:
        lines: list[str] = []
        status = run_sweep(
            expand(arguments, standin.resolve),
            arguments=arguments,
            sweep_dir=tmp_path / "sweep",
            launcher=LocalLauncher(max_parallel=3, idle_timeout=idle_timeout),
            command=[sys.executable, str(STANDIN)],
            code_version=code_version,
            commit="c0ffee",
            service=None if tracker_uri is None else MLflow(),
            tracker_uri=tracker_uri,
            experiment="sweeps",
            say=lines.append,
        )
        return status, lines

    return run


@pytest.fixture
def sweep_folder(standin: ModuleType, tmp_path: Path) -> Callable[..., Path]:
    """sweep_folder(*arguments, failed={}, interrupted=[], accuracy=.8, training={}, name="a sweep"): a folder, full.

    `failed` gives an error by a run's label, `interrupted` lists labels; `accuracy` and `training` are what
    `standin.leave_result` takes, or functions of a run that give it.
    """

    def make(
        *arguments: str,
        failed: dict[str, str] | None = None,
        interrupted: Sequence[str] = (),
        accuracy: Accuracy | Callable[[Run], Accuracy] = 0.8,
        training: Training | Callable[[Run], Training] | None = None,
        name: str = "a sweep",
    ) -> Path:
        folder = tmp_path / name
        (folder / "runs").mkdir(parents=True)
        runs = expand(arguments, standin.resolve)
        version = standin.CODE_VERSION
        write_sweep(folder, Sweep(list(arguments), "c0ffee+changes", version, "2026-01-02T03:04:05+00:00", runs))
        for run in runs:
            own = run_folder(folder, run, version)
            if failed and run.label in failed:
                own.mkdir()
                record_failure(own, failed[run.label])
            elif run.label not in interrupted:
                share = accuracy(run) if callable(accuracy) else accuracy
                trained = training(run) if callable(training) else training
                standin.leave_result(own, standin.resolve(run.overrides), version, share, trained)
        return folder

    return make
