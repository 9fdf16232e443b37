"""`llava-mini bench`: a study's report is written and tracked, and a mistake is one line and exit status 2."""

import json
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from mlflow.tracking import MlflowClient

from llava_mini.bench.report import Report
from llava_mini.cli import main
from llava_mini.tracking.tracker import EXPERIMENT

Replace = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def replace_study(monkeypatch: pytest.MonkeyPatch) -> Replace:
    """replace_study("flops"): a study that yields two reports and measures nothing; returns the values it was given."""

    def replace(module: str, **last: Any) -> list[dict[str, Any]]:
        given: list[dict[str, Any]] = []

        def study(**values: Any) -> Iterator[Report]:
            given.append(values)
            yield Report("first", {"rows": []})
            yield Report("last", {"rows": [1]}, **last)

        monkeypatch.setattr(import_module(f"llava_mini.bench.{module}"), "study", study)
        return given

    return replace


@pytest.mark.parametrize(
    ("arguments", "module", "values", "files"),
    [
        (
            ["data", "--samples", "7", "--rounds", "2"], "data_path", {"samples": 7, "rounds": 2},
            ["data_path.png", "results.json", "table.md"],
        ),
        (
            ["flops", "--text-tokens", "7", "--no-mlflow"], "flops", {"text_tokens": 7},
            ["flops.json", "flops.md", "flops.png"],
        ),
        (["memory", "--no-mlflow"], "memory", {}, ["memory.json", "memory.md", "memory.png"]),
        (
            ["latency", "--rounds", "1", "--threads", "1", "--no-mlflow"], "latency", {"rounds": 1},
            ["latency.json", "latency.md", "latency.png"],
        ),
        (["train", "--rounds", "2", "--no-mlflow"], "train", {"rounds": 2}, ["train.json", "train.md", "train.png"]),
        (
            ["memory", "--device", "cuda", "--tiny"], "step_memory", {"seconds": 450.0, "tiny": True},
            ["results.json", "table.md"],
        ),
        (
            ["latency", "--device", "cuda", "--tiny", "--seconds", "9"], "gpu_latency", {"seconds": 9.0, "tiny": True},
            ["gpu.json", "gpu.md"],
        ),
    ],
)  # fmt: skip
def test_the_last_report_is_written(
    arguments: list[str], module: str, values: dict[str, Any], files: list[str], replace_study: Replace,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    plotted = len(files) == 3
    given = replace_study(module, draw=Figure if plotted else None, complete=plotted)
    assert main(["bench", *arguments, "--out", str(tmp_path / "out")]) == (0 if plotted else 1)
    assert given == [values] and sorted(path.name for path in (tmp_path / "out").iterdir()) == files
    [text] = (tmp_path / "out").glob("*.md")
    assert text.read_text().endswith("last\n") and text.read_text() in capsys.readouterr().out
    [figures] = (tmp_path / "out").glob("*.json")
    found = json.loads(figures.read_text())
    assert found["rows"] == [1] and found["about"]["torch"] == version("torch")
    if "cpu" in found["about"]:
        assert found["about"]["threads"] >= 1 and found["about"]["load"] >= 0


def test_a_study_is_tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace_study: Replace) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    replace_study("memory", metrics={"peak_bytes": {"ours": 4 << 20}})
    assert main(["bench", "memory", "--out", str(tmp_path / "out")]) == 0
    [run] = MlflowClient(uri).search_runs([MlflowClient(uri).get_experiment_by_name(EXPERIMENT).experiment_id])
    assert run.data.tags["bench"] == "memory" and run.info.status == "FINISHED"
    assert run.data.metrics["peak_bytes.ours"] == 4 << 20


def test_flops_as_json_are_all_that_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("llava_mini.bench.flops.study", lambda text_tokens: [Report("", {"rows": [text_tokens]})])
    assert main(["bench", "flops", "--json", "--text-tokens", "7"]) == 0
    assert json.loads(capsys.readouterr().out) == [7]
    assert not list(tmp_path.iterdir())


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in [name for name in sys.modules if name.startswith("llava_mini.bench")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "webdataset", None)
    assert main(["bench", "data"]) == 2
    assert "bench data needs webdataset: pip install" in capsys.readouterr().err


@pytest.mark.parametrize("study", ["latency", "memory"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tiny", "--out", "/dev/null/x"], "--out /dev/null/x: no folder that can be written (Not a directory)"),
        (["--tiny", "--seconds", "nan"], "--seconds nan: allowed are 0 to 86400"),
        (["--tiny", "--seconds", "-1"], "--seconds -1: allowed are 0 to 86400"),
        ([], "torch finds no GPU here; --tiny tries the command on the CPU"),
    ],
)
def test_a_mistake_on_a_gpu_machine_is_one_line(
    study: str, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "out"
    assert main(["bench", study, "--device", "cuda", "--out", str(out), *arguments]) == 2
    assert capsys.readouterr().err == f"llava-mini: {message}\n" and not out.exists()


def test_training_on_a_gpu_names_a_missing_package(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert main(["bench", "memory", "--device", "cuda", "--tiny"]) == 2
    assert capsys.readouterr().err == (
        "llava-mini: training steps: bitsandbytes is not installed: pip install 'llava-mini-lab[finetune]'\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["model"],
        ["data", "--samples", "0"],
        ["data", "--rounds", "many"],
        ["flops", "--text-tokens", "0"],
        ["train", "--rounds", "0"],
        ["flops", "--device", "cuda"],
        ["latency", "--device", "cuda", "--rounds", "1"],
        ["latency", "--tiny"],
    ],
)
def test_impossible_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", *arguments])
    assert caught.value.code == 2
