"""`llava-mini bench`: what is wanted is written, what cannot be is one line and exit status 2."""

import json
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from llava_mini.bench import data_path, flop_rows, latency, peak_memory, training
from llava_mini.bench.baselines import TRANSFORMERS
from llava_mini.bench.data_path import OWN, OWN_SMALL, USUAL, USUAL_OUR_LABELS, USUAL_SMALL, WDS, WDS_SHUFFLED, Findings
from llava_mini.bench.large_set import Opening
from llava_mini.bench.peak_memory import POINTS, Point
from llava_mini.bench.stopwatch import Seconds
from llava_mini.bench.training_steps import PARTS
from llava_mini.bench.trials import Build, Cost, Memory
from llava_mini.cli import main
from llava_mini.tracking.tracker import EXPERIMENT

NAMES = (USUAL, USUAL_OUR_LABELS, USUAL_SMALL, WDS_SHUFFLED, WDS, OWN, OWN_SMALL)


def test_a_bench_writes_table_figures_and_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[int, int]] = []

    def run(work: Path, samples: int, rounds: int) -> Findings:
        assert work.is_dir() and not list(work.iterdir())
        asked.append((samples, rounds))
        costs = {name: [Cost(2.0, 2.0)] for name in NAMES}
        memories = {name: Memory(1, 2) for name in NAMES}
        pixels = {OWN: (1.0, 1.0), OWN_SMALL: (1.0, 1.0)}
        return Findings(samples, costs, memories, 1.0, [Opening(1, 1)], [Build(1, 1, 1)], [1.0], pixels)

    monkeypatch.setattr(data_path, "run", run)
    out = tmp_path / "out"
    assert main(["bench", "data", "--samples", "7", "--rounds", "2", "--out", str(out)]) == 0
    assert asked == [(7, 2)]
    assert sorted(path.name for path in out.iterdir()) == ["data_path.png", "results.json", "table.md"]
    assert (out / "table.md").read_text() in capsys.readouterr().out


def test_memory_writes_table_figures_picture_and_a_tracked_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri, out = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "out"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    points = [Point(way, frames, frames << 20, frames << 10) for way in POINTS for frames in (1, 4)]
    monkeypatch.setattr(peak_memory, "measure", lambda: points)
    assert main(["bench", "memory", "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["memory.json", "memory.md", "memory.png"]
    text = (out / "memory.md").read_text()
    assert text in capsys.readouterr().out
    assert "| LLaVA-v1.5, all patches | 4 | 4.0 | 0.0 |" in text
    found = json.loads((out / "memory.json").read_text())
    assert {name: len(found[name]) for name in ("visual_state", "sessions", "measured")} == {
        "visual_state": 4,
        "sessions": 12,
        "measured": 6,
    }
    [run] = MlflowClient(uri).search_runs([MlflowClient(uri).get_experiment_by_name(EXPERIMENT).experiment_id])
    assert run.data.tags["bench"] == "memory" and run.info.status == "FINISHED"
    assert run.data.metrics["peak_bytes.LLaVA-Mini_features_kept_4_frames"] == 4 << 20


@pytest.fixture
def counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models are counted, and stand for all rows: the real bench counts for half a minute."""
    counted = {name: flop_rows.row(name, 40) for name in (flop_rows.BASE, flop_rows.MINI)}
    which = [
        {"model": name, "resolution": resolution, "frames": frames, "order": order, "cached": cached}
        for name in (*flop_rows.MODELS, *flop_rows.ABLATIONS)
        for resolution, frames in (("standard", 1), ("standard", 16), ("hd", 1))
        for order, cached in (("release", False), ("exact", False), ("exact", True))
    ]
    rows = [{**counted[flop_rows.MINI if "mini" in each["model"] else flop_rows.BASE], **each} for each in which]
    monkeypatch.setattr(flop_rows, "rows", lambda text_tokens: [{**row, "text_tokens": text_tokens} for row in rows])


def test_flops_as_json_are_all_that_is_printed(
    counted_once: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "flops", "--json", "--text-tokens", "7"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["text_tokens"] for row in rows} == {7}
    assert all({"model", "resolution", "frames", "order", "cached", "flops"} <= row.keys() for row in rows)
    assert not list(tmp_path.iterdir())


def test_flops_writes_table_figures_picture_and_a_tracked_run(
    counted_once: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri, out = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "out"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "flops", "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["flops.json", "flops.md", "flops.png"]
    assert (out / "flops.md").read_text() in capsys.readouterr().out
    rows = json.loads((out / "flops.json").read_text())["rows"]
    [run] = MlflowClient(uri).search_runs([MlflowClient(uri).get_experiment_by_name(EXPERIMENT).experiment_id])
    assert run.data.tags["bench"] == "flops" and len(run.data.metrics) == len(rows)
    assert run.data.metrics["llava-v1.5-7b.standard.1.release"] == pytest.approx(8.55e12, rel=0.02)


def test_latency_writes_table_figures_and_picture(
    make_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(latency, "mid_size", lambda: make_config(image_token_id=98))
    out = tmp_path / "out"
    assert main(["bench", "latency", "--rounds", "1", "--no-mlflow", "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["latency.json", "latency.md", "latency.png"]
    assert (out / "latency.md").read_text() in capsys.readouterr().out
    assert json.loads((out / "latency.json").read_text())["rounds"] == 1


def test_train_writes_table_figures_and_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []

    def run(work: Path, rounds: int) -> list[training.Findings]:
        assert work.is_dir() and not list(work.iterdir())
        asked.append(rounds)
        parts = {part: Seconds([1.0], [1.0]) for part in PARTS}
        return [training.Findings("small", 1, [training.StepTimes(TRANSFORMERS, 4, 10, parts)])]

    monkeypatch.setattr(training, "run", run)
    out = tmp_path / "out"
    assert main(["bench", "train", "--rounds", "2", "--no-mlflow", "--out", str(out)]) == 0
    assert asked == [2]
    assert sorted(path.name for path in out.iterdir()) == ["train.json", "train.md", "train.png"]
    assert (out / "train.md").read_text() in capsys.readouterr().out
    found = json.loads((out / "train.json").read_text())
    assert found["about"]["threads"] == 1 and found["about"]["load"] >= 0
    assert found["shapes"][0]["ways"][0]["samples_per_cpu_second"]["median"] == 1.0


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in [name for name in sys.modules if name.startswith("llava_mini.bench")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "webdataset", None)
    assert main(["bench", "data"]) == 2
    assert "bench data needs webdataset: pip install" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["model"],
        ["data", "--samples", "0"],
        ["data", "--rounds", "many"],
        ["flops", "--text-tokens", "0"],
        ["train", "--rounds", "0"],
    ],
)
def test_impossible_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", *arguments])
    assert caught.value.code == 2
