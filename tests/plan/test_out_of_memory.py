"""A run without memory: what it says, what it leaves, and that it goes on with the changes that it names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_mini.cli import main
from llava_mini.config import resolve
from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.plan import run_memory
from llava_mini.plan.advice import Advice
from llava_mini.plan.memory_options import finetunings, memory_changes
from llava_mini.plan.run_memory import Memory, RunOutOfMemoryError, message, oom_as_run_error
from llava_mini.stages.base import VLMStage

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 31.4 GiB")
CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: not enough memory: you tried to allocate 9"
)
THIN = ["model.text_config.num_hidden_layers=1", "fusion.num_layers=1", "model.vision_config.num_hidden_layers=2"]
HERE = ("memory.activation_checkpointing", "memory.loss_chunk", "memory.vision_batch", "memory.offload_vision")


@pytest.mark.parametrize("error", [CUDA, CPU, RuntimeError("std::bad_alloc"), MemoryError()])
def test_what_is_a_want_of_memory(error: BaseException) -> None:
    with (
        pytest.raises(RunOutOfMemoryError, match="out of memory at step 7"),
        oom_as_run_error(resolve([]), lambda: 7, list),
    ):
        raise error


def test_any_other_error_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="shapes") as raised, oom_as_run_error(resolve([]), lambda: 7, list):
        raise RuntimeError("shapes do not match")
    assert not isinstance(raised.value, RunOutOfMemoryError)


def test_advice_is_the_plans_and_marks_what_needs_another_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve(["data.features=false", "data.batch_size=8", "trainer.accumulate_grad_batches=3", *THIN])
    made: list[Advice] = []

    def kept(*arguments: Any) -> Advice:
        made.append(Advice(*arguments))
        return made[-1]

    monkeypatch.setattr(run_memory, "Advice", kept)
    told = message(config, 3, str(CUDA), Memory(config).advice())
    named = told.split("cheapest first: ")[1].removesuffix(" (* in another run_dir)").split("; ")
    saved = [change.change for change in made[0].saved]
    assert named == [f"{change}{'*' * (not change.startswith(HERE))}" for change in saved]
    assert "memory.activation_checkpointing=true" in named
    assert "data.batch_size=4 trainer.accumulate_grad_batches=6*" in named


def test_what_cannot_be_planned_is_advised_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_memory(*_: object, **__: object) -> None:
        raise MemoryError

    config = resolve(["data.features=false"])
    monkeypatch.setattr(run_memory, "Peaks", without_memory)
    assert Memory(config).advice() == [*memory_changes(config), *finetunings(config)]


def test_with_nothing_to_turn_on_it_says_what_is_left() -> None:
    assert "nothing is left to turn on: shorten data.max_length" in message(resolve([]), 3, CUDA, [])


def test_the_command_ends_with_status_1_and_the_same_run_continues_with_what_saves_memory(
    smoke: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = VLMStage.training_step

    def without_memory(stage: VLMStage, batch, batch_idx: int):
        if stage.global_step == 3:
            raise torch.OutOfMemoryError(str(CUDA))
        return step(stage, batch, batch_idx)

    command = ["train", *smoke("trainer.checkpoint_every=2", "model.weights=[]", "data.batch_size=4", *THIN)]
    with monkeypatch.context() as patch:
        patch.setattr(VLMStage, "training_step", without_memory)
        assert main(command) == 1
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("llava-mini: out of memory at step 3 (CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert f"the last checkpoint is good: {last}; try, one after another, cheapest first: " in told
    assert torch.load(last, weights_only=True)["global_step"] == 2
    assert not (tmp_path / "run" / "result.json").exists()

    losses: list[bool] = []
    forward = LlavaMiniForConditionalGeneration.forward

    def watched(model: LlavaMiniForConditionalGeneration, *args, **kwargs):
        outputs = forward(model, *args, **kwargs)
        if type(outputs.loss) is torch.Tensor:  # a plan's step has no numbers
            losses.append(model.training and outputs.logits is None and model.loss_chunk == 1024)
        return outputs

    monkeypatch.setattr(LlavaMiniForConditionalGeneration, "forward", watched)
    assert main([*command, "memory.loss_chunk=1024", "memory.activation_checkpointing=true"]) == 0
    assert sum(losses) == 2  # steps 2 and 3
    lines = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
