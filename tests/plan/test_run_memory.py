"""A run on CPUs that does not fit the memory that is free is refused before anything is made for it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.refusals import refuses

from llava_mini import assembly
from llava_mini.cli import main
from llava_mini.config import resolve
from llava_mini.plan import run_memory
from llava_mini.plan.run_memory import Memory, on_cpu
from llava_mini.run.identity import config_hash
from llava_mini.units import GIB, MIB, size_text

Smoke = Callable[..., list[str]]
THIN = ["model.text_config.num_hidden_layers=1", "fusion.num_layers=1", "model.vision_config.num_hidden_layers=2"]
SHORT = ["trainer.max_steps=1", "trainer.val_every=1", "model.weights=[]", *THIN]


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """free(size): from now on `size` bytes are free in this machine's memory."""
    return lambda size: monkeypatch.setattr(run_memory, "free_bytes", lambda device: size)


def planned(overrides: list[str]) -> int:
    memory = Memory(resolve(overrides))
    memory.plan()
    assert memory.planned is not None
    return memory.planned


def test_what_does_not_fit_is_one_line_before_weights_and_features_are_made(
    smoke: Smoke, free: Callable[[int], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = tmp_path / "features"
    features.mkdir()
    command = ["train", *smoke("data.batch_size=5000", f"data.features={features}", *SHORT)]
    free(GIB)
    assert main(command) == 2
    told = capsys.readouterr().err
    assert told.startswith("llava-mini: memory.must_fit=true: a step takes ") and told.count("\n") == 1
    assert " and 1.00 GiB are free here; take a smaller data.batch_size" in told
    assert "hardware.memory_gib=1.00 says which" in told and "memory.must_fit=false" in told
    assert not (tmp_path / "run" / "config.yaml").exists() and not list(features.iterdir())


def test_the_run_begins_if_it_is_told_to(smoke: Smoke, free: Callable[[int], None], tmp_path: Path) -> None:
    free(MIB)
    assert main(["train", *smoke(*SHORT)]) == 2
    assert main(["train", *smoke("memory.must_fit=false", *SHORT)]) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "finished"
    assert config_hash(resolve(smoke())) == config_hash(resolve(smoke("memory.must_fit=false")))


def test_exactly_what_is_free_is_enough_and_every_rank_needs_its_own(smoke: Smoke, free: Callable[[int], None]) -> None:
    free(2**60)
    one = planned(smoke(*SHORT))
    free(one)
    planned(smoke(*SHORT))
    two = smoke("trainer.devices=2", "trainer.accelerator=cpu", *SHORT)
    with refuses("memory.must_fit", True) as refusal:
        Memory(resolve(two)).plan()
    assert f"(2 ranks, {size_text(one)} each)" in str(refusal.value)
    free(2 * one)
    assert planned(two) == one


def test_memory_of_gpus_is_not_this_check(smoke: Smoke, monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_cpu(resolve(smoke())) == (not torch.cuda.is_available())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not on_cpu(resolve(smoke())) and on_cpu(resolve(smoke("trainer.accelerator=cpu")))
    assert not on_cpu(resolve(smoke("trainer.accelerator=gpu")))


def test_a_plan_that_fails_stops_no_run(smoke: Smoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*_: object, **__: object) -> None:
        raise RuntimeError("cannot be built without numbers")

    monkeypatch.setattr(assembly, "build_model", without)
    memory = Memory(resolve(smoke(*SHORT)))
    memory.plan()
    assert memory.planned is None
