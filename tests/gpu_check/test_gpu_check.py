"""The GPU check works on a CPU in tiny shapes, and imports nothing that a GPU machine may lack."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from llava_mini.bench import on_gpu
from llava_mini.config import resolve
from llava_mini.files import CONFIG_DIR
from llava_mini.gpu_check import __main__ as gpu_check
from llava_mini.gpu_check import trials
from llava_mini.gpu_check.measure import CLIP, measured, planned
from llava_mini.gpu_check.setting import build_stage
from llava_mini.gpu_check.trials import LORA, TINY_TRIALS, TRIALS, Trial
from llava_mini.plan.fakes import linear_4bit
from llava_mini.settings import FULL

ABSENT = ("lightning", "torchmetrics", "hydra", "omegaconf", "mlflow", "webdataset", "pydantic", "sklearn", "av")


def assert_agree(plan: dict[str, Any], measurement: dict[str, Any]) -> None:
    assert abs(plan["planned_bytes"] / measurement["peak_bytes"] - 1) < 0.05, (plan, measurement)


def test_the_command_measures_plans_and_reports_with_what_gpu_machines_have(monkeypatch, tmp_path: Path) -> None:
    """QLoRA, which imports what the other ways do and more."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.modules.update(dict.fromkeys({ABSENT!r}))")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setattr(gpu_check, "TINY_TRIALS", TINY_TRIALS[:1])
    assert gpu_check.main(["--tiny", "--out", str(tmp_path)]) == 0
    [result] = json.loads((tmp_path / "results.json").read_text())["trials"]
    assert result["name"] == "tiny QLoRA" and result["samples_per_s"] > 0
    assert_agree(result, result)
    assert (tmp_path / "table.md").read_text().count("\n| tiny ") == 1


@pytest.mark.parametrize("number", range(1, len(TINY_TRIALS)))
def test_plan_and_measurement_of_the_other_ways_agree(number: int, capsys) -> None:
    told = []
    for also in ([], ["--plan"]):
        assert gpu_check.main(["--tiny", "--trial", str(number), *also]) == 0
        told.append(json.loads(capsys.readouterr().out.removeprefix(on_gpu._RESULT)))
    measurement, plan = told
    assert_agree(plan, measurement)
    assert plan["planned_bytes"] == planned(TINY_TRIALS[number], on_gpu=False)["planned_bytes"]


def test_trials_are_of_presets_and_build_on_meta() -> None:
    for trial in TRIALS:
        stage = build_stage(trial, "meta", linear_4bit)
        trained = {name.split(".")[1] for name, p in stage.named_parameters() if p.requires_grad}
        assert "vision_tower" not in trained and "projector" in trained, trial.name
        assert all(p.dtype == torch.float32 for p in stage.parameters() if p.requires_grad), trial.name


def test_ways_to_fine_tune_are_those_of_conf() -> None:
    ways = {"full": FULL, "lora": trials.LORA, "qlora": trials.QLORA, "frozen_llm": trials.FROZEN}
    for name, way in ways.items():
        assert asdict(way) == asdict(resolve([f"finetune={name}"]).finetune), name
    for name, compressor in {"query": trials.QUERY, "none": trials.NONE}.items():
        assert compressor == resolve([f"compressor={name}"]).compressor.spec(), name


# A trial's limit, in GiB, and its type of half precision: the card that it stands for. None: no card of conf/.
CARDS = {
    (31.4, "bfloat16"): "rtx5090_32gb", (31.7, "float16"): "v100_32gb", (23.5, "bfloat16"): "rtx4090_24gb",
    (11.5, "bfloat16"): None, (None, "bfloat16"): None,
}  # fmt: skip


def test_limits_and_types_of_trials_are_those_of_conf() -> None:
    for trial in TRIALS:
        card = CARDS[trial.limit_gib, trial.half]
        if card is not None:
            config = resolve([f"hardware={card}"])
            assert (trial.limit_gib, trial.half) == (config.hardware.memory_gib, config.memory.frozen_dtype)
            assert config.trainer.precision == {"bfloat16": "bf16-mixed", "float16": "16-mixed"}[trial.half]


def test_what_trials_leave_at_its_default_is_that_of_conf() -> None:
    config = resolve([])
    assert config.trainer.gradient_clip_val == CLIP
    assert {key: getattr(config.memory, key) for key in trials._PLAIN_MEMORY} == trials._PLAIN_MEMORY
    assert config.memory.optimizer == "adamw"
    fusion = {trial.fusion_layers for trial in TRIALS if trial.compressor == trials.QUERY}
    assert fusion == {config.fusion.num_layers}
    preset = yaml.safe_load((CONFIG_DIR / "model" / "llava_mini_vicuna_7b.yaml").read_text())
    shape = TRIALS[0].model_config(preset).to_dict()
    assert {key: shape[key] for key in asdict(config.order)} == asdict(config.order)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--out", "/dev/null/x"], "--out /dev/null/x: no folder that can be written (Not a directory)"),
        (["--seconds", "nan"], "--seconds nan: allowed are 0 to 86400"),
        (["--seconds", "-1"], "--seconds -1: allowed are 0 to 86400"),
        (["--seconds", "1e300"], "--seconds 1e+300: allowed are 0 to 86400"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], told: str, capsys, tmp_path: Path) -> None:
    assert gpu_check.main(["--tiny", "--out", str(tmp_path), *arguments]) == 2
    assert capsys.readouterr().err == f"gpu-check: {told}\n"


def test_without_a_gpu_it_says_so(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main(["--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
    assert "gpu-check: torch finds no GPU here; --tiny tries the command on the CPU" in capsys.readouterr().err


def test_a_missing_package_is_one_line(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert gpu_check.main(["--tiny"]) == 2
    assert capsys.readouterr().err == (
        "gpu-check: training steps: bitsandbytes is not installed: pip install 'llava-mini-lab[finetune]'\n"
    )


def test_a_trial_that_fails_is_told_and_the_next_is_run(monkeypatch, tmp_path: Path) -> None:
    answers = iter([{"status": "failed: NaN"}, {"status": "measured", "peak_bytes": 2**30, "samples_per_s": 1.0}])
    monkeypatch.setattr(gpu_check, "_both", lambda *_: next(answers))
    found = gpu_check.check(TINY_TRIALS[:2], tmp_path, 60.0, tiny=True)
    assert [result["status"] for result in found] == ["failed: NaN", "measured"]
    assert "| tiny QLoRA | all | failed: NaN |" in (tmp_path / "table.md").read_text()


def test_no_trial_begins_when_the_time_is_over(tmp_path: Path) -> None:
    found = gpu_check.check(TINY_TRIALS, tmp_path, 0.0, tiny=True)
    assert {result["status"] for result in found} == {"not run: no time left"}


def test_out_of_memory_is_a_result(monkeypatch) -> None:
    def full(*_args, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    monkeypatch.setattr(gpu_check, "measured", full)
    found = gpu_check._one(TINY_TRIALS[0], plan=False, tiny=True)
    assert found == {"status": "out of memory: CUDA out of memory. Tried to allocate 2 GiB"}


def test_plan_and_measurement_agree_in_float16() -> None:
    trial = Trial("float16", "tiny", LORA, 3, limit_gib=None, half="float16", optimizer="adamw", text_tokens=30)
    assert_agree(planned(trial, on_gpu=False), measured(trial, torch.device("cpu")))
