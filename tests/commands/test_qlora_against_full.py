"""The bar of `make qlora`: 3 points of test accuracy below full fine-tuning pass, more do not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llava_mini.settings import conf

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "004-memory" / "qlora_against_full.py"


def run_folder(folder: Path, finetune: str, accuracy: dict[str, float]) -> Path:
    """As a finished run leaves it, with what is read of it."""
    folder.mkdir()
    group = conf(f"finetune/{finetune}")
    (folder / "config.yaml").write_text(yaml.safe_dump({"finetune": group}))
    (folder / "result.json").write_text(json.dumps({"accuracy": accuracy}))
    return folder


def asked(*arguments: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("qlora", "status", "told"),
    [
        (0.947, 0, "QLoRA is 3.00 points below\nwithin 3 points of full fine-tuning\n"),
        (0.98, 0, "QLoRA is 0.30 points above\nwithin 3 points of full fine-tuning\n"),
        (0.9465, 1, "QLoRA is 3.05 points below\nNOT within 3 points of full fine-tuning\n"),
    ],
)
def test_three_points_below_are_within_and_more_are_not(tmp_path: Path, qlora: float, status: int, told: str):
    runs = [
        run_folder(tmp_path / "qlora", "qlora", {"val": 0.1, "test": qlora}),
        run_folder(tmp_path / "full", "full", {"val": 0.9, "test": 0.977}),
    ]
    done = asked(*runs)
    assert (done.returncode, done.stderr) == (status, "")
    assert done.stdout.startswith(f"test accuracy: QLoRA {100 * qlora:.2f} %, full 97.70 %; ")
    assert done.stdout.endswith(told)


def test_other_runs_are_refused_in_one_line(tmp_path: Path):
    qlora = run_folder(tmp_path / "qlora", "qlora", {"test": 0.9})
    full = run_folder(tmp_path / "full", "full", {"test": 0.9})
    untested = run_folder(tmp_path / "untested", "full", {"val": 0.9})
    refused = {
        (full, qlora): "full: no run with finetune=qlora",
        (qlora, qlora): "qlora: no run with finetune=full",
        (qlora, untested): "not two finished runs with a test split",
        (qlora, tmp_path / "nowhere"): "not two finished runs with a test split",
        (qlora,): "needed are two folders of runs",
    }
    for arguments, told in refused.items():
        done = asked(*arguments)
        assert done.returncode == 2 and told in done.stderr and done.stderr.count("\n") == 1, done


def test_make_qlora_and_ci_ask():
    steps = subprocess.run(
        ["make", "--no-print-directory", "-n", "qlora"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert steps.rstrip().endswith("qlora_against_full.py runs/tiny_qlora runs/tiny_full")
    assert "run_dir=runs/tiny_full" in steps
    assert "make qlora" in (ROOT / ".ci" / "run").read_text().splitlines()
