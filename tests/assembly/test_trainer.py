"""Config to training: every stage builds, and the trainer is as the config says, on one device and on several."""

import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import _pytree
from tests.refusals import refuses

from llava_mini import assembly
from llava_mini.config import Config, instantiate, options, resolve
from llava_mini.data.stream.callbacks import Quarantine, StreamPosition
from llava_mini.data.stream.datamodule import VLMDataModule
from llava_mini.finetune import fingerprints
from llava_mini.models.configuration import PARTS
from llava_mini.stages.callbacks import Clock, History
from llava_mini.sweep.launcher import LocalLauncher
from llava_mini.training.run import assemble

Resolve = Callable[..., Config]
ModelOf = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize("name", [name for name in options("stage") if name != "vision_pretraining"])
def test_every_stage_builds(config_of: Resolve, model_of: ModelOf, name: str):
    plain = ["recipe=tiny_stage1", "fusion.num_layers=0"]  # what alignment is for
    config = config_of(f"stage={name}", *(plain if name == "alignment" else []))
    model = model_of(config)
    stage = assembly.build_stage(config, model)
    assert stage.model is model
    rates = {part: rate for part, rate in config.stage.arguments["learning_rates"].items() if rate is not None}
    assert stage.trained_parts == [part for part in PARTS if part in rates] != []


def test_stage_0_builds_for_a_tower_alone(config_of: Resolve, model_of: ModelOf):
    config, tower = resolve(["recipe=tiny_stage0"]), model_of(config_of()).vision_tower
    assert config.choices["stage"] == "vision_pretraining"
    stage = instantiate(
        config.stage, "stage", vision_tower=tower, feature_layer=-1, target_classes={"kind": 2, "digit": 11}
    )
    assert stage.vision_tower is tower and stage.heads["digit"].out_features == 11


@pytest.mark.parametrize("name", options("launcher"))
def test_every_launcher_builds(name: str):
    assert isinstance(instantiate(resolve([f"launcher={name}"]).launcher, "launcher"), LocalLauncher)


@pytest.fixture
def trainer_of(config_of: Resolve) -> Callable[..., Any]:
    """trainer_of("key=value", ...): the trainer of a config."""
    data = VLMDataModule(splits={}, batch_size=1, eval_batch_size=1, num_batches=0)
    return lambda *overrides: assembly.build_trainer(config_of(*overrides), data, Clock(), [])


def test_a_trainer_is_as_the_config_says(trainer_of: Callable[..., Any], tmp_path: Path):
    trainer = trainer_of(
        "trainer.max_steps=7", "trainer.accumulate_grad_batches=3", "trainer.val_every=2", "data.max_bad_fraction=0.5"
    )
    assert (trainer.max_steps, trainer.accumulate_grad_batches, trainer.val_check_interval) == (7, 3, 6)
    assert trainer.gradient_clip_val == 1.0 and trainer.logger is None
    assert trainer_of("trainer.max_steps=7", "trainer.val_every=99").val_check_interval == 7
    kinds = [type(callback) for callback in trainer.callbacks]
    assert {Clock, StreamPosition, Quarantine, History} < set(kinds)
    quarantine = trainer.callbacks[kinds.index(Quarantine)]
    assert (quarantine.path.parent, quarantine.max_bad_fraction) == (tmp_path / "run", 0.5)


def test_several_devices_are_ranks_of_which_some_may_see_no_image(trainer_of: Callable[..., Any]):
    assert trainer_of("trainer.accelerator=cpu").world_size == 1
    trainer = trainer_of("trainer.accelerator=cpu", "trainer.devices=3")
    assert trainer.world_size == 3
    assert isinstance(trainer.strategy, DDPStrategy)
    assert trainer.strategy._ddp_kwargs["find_unused_parameters"] is True


def test_more_devices_than_there_are_is_one_line(trainer_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with refuses("trainer.devices", 2):
        trainer_of("trainer.devices=2")


def test_another_number_of_processes_than_the_config_says_is_one_line(
    trainer_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with refuses("trainer.devices", 1):
        trainer_of("trainer.accelerator=cpu", "trainer.num_nodes=2")
    assert trainer_of("trainer.accelerator=cpu", "trainer.devices=2", "trainer.num_nodes=2").world_size == 4


def test_what_this_machine_lacks_is_reported_before_anything_is_made(
    config_of: Resolve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assembly.check_training(config_of("finetune=qlora", "memory.optimizer=adamw_8bit"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for key, value in (("trainer.accelerator", "gpu"), ("memory.optimizer", "paged_adamw_8bit")):
        with refuses(key, value):
            assemble(config_of(f"{key}={value}"))
    for package, key in (("peft", "finetune.lora"), ("bitsandbytes", "finetune.quantize")):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, package, None)
            with refuses(key):
                assemble(config_of("finetune=qlora"))
    assert not (tmp_path / "world").exists()


def test_a_base_with_random_weights_is_the_same_for_a_run_and_for_its_merging(config_of: Resolve) -> None:
    config = config_of("fusion.init=random")
    base = fingerprints(assembly.build_base(config)[1])
    torch.manual_seed(9)
    assert fingerprints(assembly.build_base(config)[1]) == base
    assert fingerprints(assembly.build_base(replace(config, seed=1))[1]) != base


def test_lightnings_own_deprecated_call_is_not_told(trainer_of: Callable[..., Any]) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer_of("trainer.max_steps=1")
        _pytree._tree_flatten([torch.ones(1)])
    assert not [warning for warning in told if "LeafSpec" in str(warning.message)]
