"""The stand-in for `llava-mini train`, as a module, and a sweep that is run with it."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from llava_mini.sweep.grid import expand
from llava_mini.sweep.launcher import LocalLauncher
from llava_mini.sweep.runner import run_sweep

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
    """sweep(*arguments, code_version=..., tracker_uri=None): runs it in tmp_path/sweep; exit status and lines said."""

    def run(
        *arguments: str, code_version: str = standin.CODE_VERSION, tracker_uri: str | None = None
    ) -> tuple[int, list[str]]:
        lines: list[str] = []
        status = run_sweep(
            expand(arguments, standin.resolve),
            arguments=arguments,
            sweep_dir=tmp_path / "sweep",
            launcher=LocalLauncher(max_parallel=3),
            command=[sys.executable, str(STANDIN)],
            code_version=code_version,
            commit="c0ffee",
            tracker_uri=tracker_uri,
            say=lines.append,
        )
        return status, lines

    return run
