"""Runs of seconds: the smoke experiment in a world of its own, on the shipped stage-0 and stage-1 checkpoints."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def world_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the data of all tests of this session."""
    return tmp_path_factory.mktemp("world")


@pytest.fixture
def smoke(world_dir: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """smoke("key=value", ...): overrides of a short run in tmp_path/run that tracks nothing."""

    def make(*overrides: str) -> list[str]:
        own = {
            "run_dir": str(tmp_path / "run"),
            "tracking.enabled": "false",
            "data.folder": str(world_dir / "toyworld"),
        }
        given = dict(item.split("=", 1) for item in overrides)
        return ["experiment=smoke", *(f"{key}={value}" for key, value in {**own, **given}.items())]

    return make


@pytest.fixture(scope="session")
def llava_mini() -> Callable[..., subprocess.CompletedProcess]:
    """llava_mini("train", "key=value", ...): the command line in a process of its own, from the repository's root."""

    def call(*arguments: str, timeout: float = 240.0) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "llava_mini", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)

    return call
