"""Two CPU ranks that hold a share of every weight train as two ranks with whole models do, and go on after a kill.

Some batches show no image, so a rank must run layers that it has no use for, or the other one waits for ever.
"""

import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.several_ranks import Nursery, has_trained, history, is_gone, wait_for

from llava_mini.cli import main

TWO = ["trainer.devices=2", "trainer.accelerator=cpu", "trainer.max_steps=6", "trainer.val_every=6"]
DEALT = [*TWO, "trainer.strategy=fsdp", "trainer.checkpoint_every=2"]
LORA = [*DEALT, "finetune=lora", "finetune.lora.rank=4", "finetune.lora.dropout=0.3", "finetune.prefusion=lora"]

Finished = Callable[..., Path]


@pytest.fixture(scope="module")
def finished(nursery: Nursery, arguments: Callable, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """finished("key=value", ...): the folder of a run of two ranks; finished(..., killed=True): killed on its way."""

    def make(*overrides: str, killed: bool = False) -> Path:
        run_dir: Path = tmp_path_factory.mktemp("fsdp") / "run"
        if killed:
            group = nursery.begin(arguments(run_dir, *overrides), 2)
            wait_for(partial(has_trained, run_dir, 4))
            os.killpg(group, signal.SIGKILL)
            assert nursery.status() == -signal.SIGKILL
            wait_for(partial(is_gone, group), seconds=10)
            assert torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] in (2, 4)
        nursery.begin(arguments(run_dir, *overrides), 2)
        assert nursery.status() == 0
        return run_dir

    return make


@pytest.fixture(scope="module")
def dealt(finished: Finished) -> Path:
    """An FSDP run that nothing has interrupted."""
    return finished(*DEALT)


@pytest.fixture(scope="module")
def adapted(finished: Finished) -> Path:
    """The same of LoRA, with dropout."""
    return finished(*LORA)


def same_tensors(folders: tuple[Path, Path], name: str) -> bool:
    found, expected = (load_file(folder / "model" / name) for folder in folders)
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


def accuracy(run_dir: Path) -> dict:
    found: dict = json.loads((run_dir / "result.json").read_text())["accuracy"]
    return found


def test_sharded_weights_are_trained_as_whole_ones(dealt: Path, finished: Finished):
    whole = finished(*TWO, "trainer.checkpoint_every=2")
    lines = [history(folder) for folder in (dealt, whole)]
    assert [line["keys"] for line in lines[0]] == [line["keys"] for line in lines[1]]
    losses = [[line["loss"] for line in each if line["loss"]] for each in lines]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)  # sums in another order
    kept = [torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (dealt, whole)]
    assert kept[0]["global_step"] == kept[1]["global_step"] == 6
    assert kept[0]["state_dict"].keys() == kept[1]["state_dict"].keys()
    for name, tensor in kept[0]["state_dict"].items():
        torch.testing.assert_close(tensor, kept[1]["state_dict"][name], rtol=1e-2, atol=1e-3)


def test_a_killed_run_equals_the_uninterrupted_one(dealt: Path, finished: Finished):
    resumed = finished(*DEALT, killed=True)
    assert history(resumed) == history(dealt)
    assert same_tensors((resumed, dealt), "model.safetensors")
    assert accuracy(resumed) == accuracy(dealt)


def test_a_killed_run_with_adapters_equals_the_uninterrupted_one(adapted: Path, finished: Finished):
    resumed = finished(*LORA, killed=True)
    assert history(resumed) == history(adapted)
    for name in ("adapter/adapter_model", "prefusion_adapter/adapter_model", "trained"):
        assert same_tensors((resumed, adapted), f"{name}.safetensors"), name
    assert accuracy(resumed) == accuracy(adapted)


def test_a_checkpoint_holds_the_adapters_whole_and_no_frozen_weight(adapted: Path):
    state = torch.load(adapted / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    parts = {name.split(".")[1] for name in state}
    assert parts == {"language_model", "prefusion", "projector", "compressor"}
    assert all("lora_" in name for name in state if name.split(".")[1] in ("language_model", "prefusion"))
    kept = load_file(adapted / "model" / "adapter" / "adapter_model.safetensors")
    assert kept, "the language model's adapters"
    for name, tensor in kept.items():
        own = name.replace("base_model.model.", "model.language_model.").replace(".weight", ".default.weight")
        torch.testing.assert_close(state[own], tensor, rtol=0, atol=0)
    assert any(tensor.abs().max() > 0 for name, tensor in kept.items() if "lora_B" in name), "they have been trained"


def test_a_run_with_adapters_is_merged_and_answers_alike(adapted: Path, tmp_path: Path):
    assert main(["merge", "--check", str(adapted), str(tmp_path / "plain")]) == 0
    assert not any("lora" in name for name in load_file(tmp_path / "plain" / "model.safetensors"))
