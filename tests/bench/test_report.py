"""A report says under which circumstances it was made, and nothing about where."""

import json
import platform
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from llava_mini.bench.report import Report, check_folder, circumstances, circumstances_text, markdown
from llava_mini.errors import UserError


def test_a_report_is_written_with_its_circumstances(tmp_path: Path) -> None:
    about = circumstances()
    report = Report(markdown(("a", "b"), [(1, 2.5)]), {"rows": [1]}, draw=Figure)
    text = report.write(tmp_path, ("x.md", "x.json", "x.png"), about)
    assert text == (tmp_path / "x.md").read_text() and text.endswith("| a | b |\n|---|---|\n| 1 | 2.5 |\n")
    assert json.loads((tmp_path / "x.json").read_text()) == {"about": about, "rows": [1]}
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path) not in text and platform.node() not in text


def test_circumstances_of_a_cpu_and_of_a_gpu() -> None:
    about = {"commit": "c" * 40 + "+changes", "cpu": "EPYC", "cores": 2, "threads": 2, "load": 0.5, "torch": "2.13"}
    said = "Processes that ran or waited on the 2 cores when it began: 0.5 on average."
    assert circumstances_text(about) == f"Commit `cccccccccccc+changes`; 2 threads on EPYC; torch 2.13. {said}"
    assert circumstances(card="H200")["device"] == "H200"
    gpu = {"commit": "d" * 40, "device": "H200", "cuda": "13.0", "torch": "2.13"}
    assert circumstances_text(gpu) == "Commit `dddddddddddd`; H200; CUDA 13.0; torch 2.13."


def test_a_folder_that_cannot_be_written_is_named() -> None:
    with pytest.raises(UserError, match="out=/dev/null/x"):
        check_folder(Path("/dev/null/x"))
