"""The GPU bench works on a CPU in tiny shapes, and imports nothing that a GPU machine may lack."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from llava_mini.bench import on_gpu
from llava_mini.bench.baselines import OURS, RELEASED, TRANSFORMERS, WAYS, Models
from llava_mini.bench.stopwatch import measure
from llava_mini.gpu_bench import __main__ as gpu_bench
from llava_mini.gpu_bench import parts
from llava_mini.gpu_bench.report import write_report
from llava_mini.gpu_bench.sizes import REAL, TINY

ABSENT = (
    "lightning", "torchmetrics", "hydra", "omegaconf", "mlflow", "webdataset", "pydantic", "sklearn", "av",
    "matplotlib", "peft", "bitsandbytes", "simplejpeg",
)  # fmt: skip
CPU = torch.device("cpu")


def test_every_part_runs_with_what_gpu_machines_have() -> None:
    without = f"import sys; sys.modules.update(dict.fromkeys({ABSENT!r}))"
    parts_run = "; ".join(f"main({['--tiny', '--part', part]!r})" for part in parts.PARTS)
    run = f"{without}; from llava_mini.gpu_bench.__main__ import main; {parts_run}"
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=False)
    rows = [json.loads(line.removeprefix(on_gpu._RESULT)) for line in done.stdout.splitlines()]
    assert {row["status"] for row in rows} == {"measured"}, done.stderr
    ways: dict[str, set[str]] = {}
    for row in rows:
        ways.setdefault(row["task"], set()).add(row["way"])
        assert row.get("wall", {"median": 1})["median"] > 0
    assert ways["image"] == ways["images"] == ways["further token"] == set(WAYS)
    assert ways["HD image"] == {TRANSFORMERS, RELEASED, OURS} and ways["video"] == {RELEASED, OURS}
    later = {f"later question, {what}" for what in ("image", "HD image", "video")}
    static = {f"further token, static cache, {how}" for how in ("compiled", "not compiled")}
    assert all(ways[task] == {OURS} for task in {"long video", *later, *static})
    [long] = [row for row in rows if row["task"] == "long video"]
    assert long["frames"] == TINY.long_frames and long["frames_per_s"] > 0


def test_the_command_reports(monkeypatch, tmp_path: Path, capsys) -> None:
    rows = {
        "latency": [
            {"task": "image", "way": OURS, "batch": 1, "frames": 1, "flops": 2e12, "wall": {"median": 0.02},
             "peak_tflops": 400.0, "peak_share": 0.25, "status": "measured"},
        ],
        "long_video": [
            {"task": "long video", "way": OURS, "frames": 10_000, "frames_per_s": 250.0, "question_s": 20.0,
             "later_question_s": 15.0, "host_gib": 5.5, "limit_gib": 23.5, "peak_gib": 21.25, "status": "measured"},
        ],
        "decoding": [{"task": "decoding", "status": "ended: no time left"}],
    }  # fmt: skip
    monkeypatch.setattr(gpu_bench, "_part", lambda name, *_args, **_options: rows[name])
    assert gpu_bench.main(["--tiny", "--out", str(tmp_path)]) == 1
    text = (tmp_path / "gpu.md").read_text()
    assert text in capsys.readouterr().out
    assert f"| image | {OURS} | 1 | 20.00 | 50.0 images | 2.00 | 25 % | measured |" in text
    assert "| decoding |  |  |  |  |  |  | ended: no time left |" in text
    assert "10,000 frames, 250.0 frames/s" in text and "21.25 of 23.5 GiB" in text
    assert len(json.loads((tmp_path / "gpu.json").read_text())["rows"]) == 3


def test_the_shape_is_7b() -> None:
    with torch.device("meta"):
        model = Models(REAL.config(), torch.device("meta"), REAL.dtype).mini
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(7.87e9, rel=0.01)
    assert model.dtype == torch.bfloat16


def test_without_a_gpu_it_says_so(monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_bench.main([]) == 2
    assert "gpu-bench: torch finds no GPU here; --tiny tries the command on the CPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--out", "/dev/null/x"], "--out /dev/null/x: no folder that can be written (Not a directory)"),
        (["--seconds", "nan"], "--seconds nan: allowed are 0 to 86400"),
        (["--seconds", "-1"], "--seconds -1: allowed are 0 to 86400"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], told: str, capsys, tmp_path: Path) -> None:
    assert gpu_bench.main(["--tiny", "--out", str(tmp_path), *arguments]) == 2
    assert capsys.readouterr().err == f"gpu-bench: {told}\n"


def test_a_part_that_fails_or_lasts_is_told() -> None:
    [row] = gpu_bench._part("decoding", 0.01, tiny=True)
    assert row == {"task": "decoding", "status": "ended: no time left"}


def test_out_of_memory_is_a_result_and_the_next_is_measured(monkeypatch) -> None:
    tasks = parts._tasks

    def two(*given):
        return {name: make for name, make in tasks(*given).items() if name in ("images", "video")}

    def full(trials, *others):
        if trials[-1].task == "images":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")
        return measure(trials, *others)

    monkeypatch.setattr(parts, "_tasks", two)
    monkeypatch.setattr(parts, "measure", full)
    rows = list(parts.latency(TINY, CPU, time.monotonic() + 60))
    assert [row["status"] for row in rows if row["task"] == "images"] == [
        "out of memory: CUDA out of memory. Tried to allocate 2 GiB"
    ]
    assert [row["status"] for row in rows if row["task"] == "video"] == ["measured"] * 2


def test_nothing_begins_when_the_time_is_over(tmp_path: Path) -> None:
    rows = [*parts.latency(TINY, CPU, 0.0), *parts.decoding(TINY, CPU, 0.0)]
    assert {row["status"] for row in rows} == {"not run: no time left"}
    assert write_report(tmp_path, "CPU", rows).count("not run: no time left") == len(rows)
