"""The study of training memory works on a CPU in tiny shapes, with what machines with a GPU have."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_mini.bench import step_memory
from llava_mini.bench.step_memory import LORA, QLORA, REAL, TINY, Steps, build_stage, measured, planned, study
from llava_mini.config import resolve
from llava_mini.plan.fakes import linear_4bit


def assert_agree(plan: dict[str, Any], measurement: dict[str, Any]) -> None:
    assert abs(plan["planned_bytes"] / measurement["peak_bytes"] - 1) < 0.05, (plan, measurement)


def test_the_command_measures_plans_and_reports_with_what_gpu_machines_have(
    on_gpu_machine: Callable[..., None], tmp_path: Path
) -> None:
    """QLoRA, which imports what the other ways do and more."""
    arguments = ["bench", "memory", "--device", "cuda", "--tiny", "--out", str(tmp_path)]
    short = "from llava_mini.bench import step_memory; step_memory.TINY = step_memory.TINY[:1]"
    on_gpu_machine(f"{short}; from llava_mini.cli import main; assert main({arguments!r}) == 0")
    [result] = json.loads((tmp_path / "results.json").read_text())["trials"]
    assert result["name"] == "tiny QLoRA" and result["samples_per_s"] > 0
    assert_agree(result, result)
    assert (tmp_path / "table.md").read_text().count("\n| tiny ") == 1


_FLOAT16 = Steps("float16", "tiny", LORA, 3, "v100_32gb", optimizer="adamw", text_tokens=30)


@pytest.mark.parametrize("steps", [*TINY[1:], _FLOAT16], ids=lambda steps: steps.name)
def test_plan_and_measurement_agree(steps: Steps) -> None:
    assert_agree(planned(steps, on_gpu=False), measured(steps, "cpu"))


def test_steps_are_of_presets_and_build_on_meta() -> None:
    for steps in REAL:
        stage = build_stage(steps, "meta", linear_4bit)
        trained = {name.split(".")[1] for name, p in stage.named_parameters() if p.requires_grad}
        assert "vision_tower" not in trained and "projector" in trained, steps.name
        assert all(p.dtype == torch.float32 for p in stage.parameters() if p.requires_grad), steps.name


def test_settings_are_read_as_the_config_reads_them() -> None:
    assert asdict(resolve(["finetune=qlora"]).finetune) == asdict(QLORA)
    v100 = replace(TINY[0], card="v100_32gb")
    config = resolve(["hardware=v100_32gb"])
    assert (v100.limit, v100.half) == (config.hardware.memory_gib, torch.float16)
    assert config.memory.frozen_dtype == "float16" and config.trainer.precision == "16-mixed"
    assert (TINY[0].limit, TINY[0].half) == (None, torch.bfloat16)


def test_what_fails_is_named_and_the_next_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([{"status": "failed: NaN"}, {"status": "measured", "peak_bytes": 2**30, "samples_per_s": 1.0}])
    monkeypatch.setattr(step_memory, "_both", lambda *_: next(answers))
    monkeypatch.setattr(step_memory, "TINY", TINY[:2])
    first, last = study(seconds=60.0, tiny=True)
    assert "| tiny QLoRA | all | failed: NaN |" in first.text
    assert [result["status"] for result in last.figures["trials"]] == ["failed: NaN", "measured"] and not last.complete


def test_nothing_begins_when_the_time_is_over() -> None:
    *_, last = study(seconds=0.0, tiny=True)
    assert {result["status"] for result in last.figures["trials"]} == {"not run: no time left"}
