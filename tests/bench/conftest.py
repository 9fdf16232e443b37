"""A small set of made data, findings as a study would have them, and commands as they run on a machine with a GPU."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llava_mini.bench.data_path import LLAVA, LLAVA_OUR_LABELS, LLAVA_SMALL, OWN, OWN_SMALL, WDS, WDS_SHUFFLED, Findings
from llava_mini.bench.large_set import Opening
from llava_mini.bench.made_data import MadeData, make_data
from llava_mini.bench.trials import Build, Cost, Memory

CPU = {LLAVA: 9.0, LLAVA_OUR_LABELS: 8.5, LLAVA_SMALL: 4.5, WDS_SHUFFLED: 3.5, WDS: 3.2, OWN: 2.8, OWN_SMALL: 1.4}
ABSENT = (
    "lightning", "torchmetrics", "hydra", "omegaconf", "mlflow", "webdataset", "pydantic", "sklearn", "av",
    "matplotlib", "simplejpeg",
)  # fmt: skip


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> MadeData:
    """40 samples."""
    return make_data(tmp_path_factory.mktemp("bench") / "made", 40)


@pytest.fixture
def findings() -> Findings:
    """Of two rounds, the second on a machine that was twice as slow; everything that is required is met."""
    return Findings(
        samples=40,
        costs={name: [Cost(cpu, cpu), Cost(2 * cpu, 3 * cpu)] for name, cpu in CPU.items()},
        memories={name: Memory(300, 330 + (80 if name == WDS_SHUFFLED else cpu)) for name, cpu in CPU.items()},
        record_bytes=3000.0,
        openings=[Opening(0.2, 3.0), Opening(0.4, 4.0)],
        builds=[Build(2.0, 2.5, 100_000.0), Build(2.4, 3.0, 100_000.0)],
        verify_ms=[1.0, 1.2],
        differences={OWN: (2.0, 0.1), OWN_SMALL: (60.0, 1.6)},
    )


@pytest.fixture
def on_gpu_machine(tmp_path: Path) -> Callable[..., None]:
    """on_gpu_machine(code, "peft"): run code in a process that finds no packages but those that such a machine has."""

    def run(code: str, *absent: str) -> None:
        without = f"import sys; sys.modules.update(dict.fromkeys({(*ABSENT, *absent)!r}))"
        (tmp_path / "sitecustomize.py").write_text(without)  # the processes that measure begin with it too
        paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
        command, found = [sys.executable, "-c", code], os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        done = subprocess.run(command, env=found, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    return run
