"""The study of latency on a GPU works on a CPU in tiny shapes, with what machines with a GPU have."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llava_mini.bench import gpu_latency
from llava_mini.bench.gpu_latency import PARTS, TINY, decoding, latency, measure_part, report, study
from llava_mini.bench.subjects import OURS, RELEASED, TRANSFORMERS, WAYS
from llava_mini.bench.timing import measure

CPU = torch.device("cpu")


def test_every_part_runs_with_what_gpu_machines_have(on_gpu_machine: Callable[..., None], tmp_path: Path) -> None:
    arguments = ["bench", "latency", "--device", "cuda", "--tiny", "--out", str(tmp_path)]
    on_gpu_machine(
        f"from llava_mini.cli import main; sys_exit = main({arguments!r}); assert sys_exit == 0", "peft", "bitsandbytes"
    )
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    ways: dict[str, set[str]] = {}
    for row in rows:
        ways.setdefault(row["task"], set()).add(row["way"])
        assert row["status"] == "measured" and row.get("wall", {"median": 1})["median"] > 0
    assert ways["image"] == ways["images"] == ways["further token"] == set(WAYS)
    assert ways["HD image"] == {TRANSFORMERS, RELEASED, OURS} and ways["video"] == {RELEASED, OURS}
    later = {f"follow-up question, {what}" for what in ("image", "HD image", "video")}
    static = {f"further token, static cache, {how}" for how in ("compiled", "not compiled")}
    assert all(ways[task] == {OURS} for task in {"long video", *later, *static})
    [long] = [row for row in rows if row["task"] == "long video"]
    assert long["frames"] == TINY.long_frames and long["frames_per_s"] > 0


def test_a_report_follows_each_part(monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setattr(gpu_latency, "measure_part", lambda name, *_: rows[name])
    *firsts, last = study(seconds=60.0, tiny=True)
    assert [each.complete for each in (*firsts, last)] == [True, True, False] and len(firsts) == len(PARTS) - 1
    assert f"| image | {OURS} | 1 | 20.00 | 50.0 images | 2.00 | 25 % | measured |" in last.text
    assert "| decoding |  |  |  |  |  |  | ended: no time left |" in last.text
    assert "10,000 frames, 250.0 frames/s" in last.text and "21.25 of 23.5 GiB" in last.text
    assert len(last.figures["rows"]) == 3


def test_a_part_that_lasts_is_ended() -> None:
    assert measure_part("decoding", 0.01, tiny=True) == [{"task": "decoding", "status": "ended: no time left"}]


def test_out_of_memory_is_a_result_and_the_next_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = gpu_latency._tasks

    def two(*given):
        return {name: make for name, make in tasks(*given).items() if name in ("images", "video")}

    def full(trials, *others):
        if trials[-1].task == "images":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")
        return measure(trials, *others)

    monkeypatch.setattr(gpu_latency, "_tasks", two)
    monkeypatch.setattr(gpu_latency, "measure", full)
    rows = list(latency(TINY, CPU, time.monotonic() + 60))
    status = "out of memory: CUDA out of memory. Tried to allocate 2 GiB"
    assert [row["status"] for row in rows] == [status, "measured", "measured"]


def test_nothing_begins_when_the_time_is_over() -> None:
    rows = [*latency(TINY, CPU, 0.0), *decoding(TINY, CPU, 0.0)]
    assert {row["status"] for row in rows} == {"not run: no time left"}
    assert report(rows).text.count("not run: no time left") == len(rows)
