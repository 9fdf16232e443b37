"""A run without memory: what it says, what it leaves, and that it goes on with the savers that it names."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llava_mini.cli import main
from llava_mini.commands.out_of_memory import (
    RunOutOfMemoryError,
    is_out_of_memory,
    memory_advice,
    message,
    out_of_memory_told,
)
from llava_mini.config import resolve
from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.stages.base import VLMStage

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 31.4 GiB")
CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: not enough memory: you tried to allocate 9"
)
EVERY = [
    "data.features=false",
    "savers.vision_batch=1",
    "savers.loss_chunk=9",
    "savers.optimizer=adamw_8bit",
    "savers.checkpointing=true",
    "finetune=qlora",
    "data.batch_size=1",
]


@pytest.mark.parametrize("error", [CUDA, CPU, MemoryError()])
def test_what_is_a_want_of_memory(error: BaseException) -> None:
    assert is_out_of_memory(error)
    with (
        pytest.raises(RunOutOfMemoryError, match="out of memory at step 7"),
        out_of_memory_told(resolve([]), lambda: 7),
    ):
        raise error


def test_any_other_error_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="shapes") as raised, out_of_memory_told(resolve([]), lambda: 7):
        raise RuntimeError("shapes do not match")
    assert not isinstance(raised.value, RunOutOfMemoryError)


def test_advice_is_what_is_not_on_in_the_order_of_its_cost() -> None:
    config = resolve(["data.features=false", "data.batch_size=8", "trainer.accumulate_grad_batches=3"])
    assert memory_advice(config) == [
        "savers.vision_batch=4",
        "savers.loss_chunk=1024",
        "savers.optimizer=paged_adamw_8bit*",
        "savers.checkpointing=true",
        "finetune=qlora*",
        "data.batch_size=4 trainer.accumulate_grad_batches=6*",
    ]
    for saver in range(len(EVERY)):
        assert len(memory_advice(resolve(["data.batch_size=2", *EVERY[: saver + 1]]))) == 6 - saver
    assert "savers.vision_batch=4" not in memory_advice(resolve(["data.features=true"]))


def test_with_every_saver_on_it_says_what_is_left() -> None:
    assert "every saver is on: shorten data.max_length" in message(resolve(EVERY), 3, CUDA)


def test_the_command_ends_with_status_1_and_the_same_run_goes_on_with_savers(
    smoke: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = VLMStage.training_step

    def without_memory(stage: VLMStage, batch, batch_idx: int):
        if stage.global_step == 3:
            raise torch.OutOfMemoryError(str(CUDA))
        return step(stage, batch, batch_idx)

    command = ["train", *smoke("trainer.checkpoint_every=2")]
    with monkeypatch.context() as patch:
        patch.setattr(VLMStage, "training_step", without_memory)
        assert main(command) == 1
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("llava-mini: out of memory at step 3 (CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert f"the last checkpoint is good: {last}; try, cheapest first: savers.loss_chunk=1024; " in told
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
    assert main([*command, "savers.loss_chunk=1024", "savers.checkpointing=true"]) == 0
    assert sum(losses) == 2  # steps 2 and 3
    lines = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
