"""Values that do not go together are refused in one line as soon as the config is composed."""

import pytest

from llava_mini.config import resolve
from llava_mini.errors import UserError

FSDP = ["trainer.strategy=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["finetune=qlora", "finetune.language_model=full"], "finetune.quantize=nf4 with finetune.language_model=full"),
        (["finetune=full", "finetune.prefusion=lora"], "finetune.prefusion=lora with finetune.lora=null: needed is"),
        (["memory.frozen_dtype=float16"], "memory.frozen_dtype=float16 with trainer.precision=32-true: allowed are"),
        (["trainer.strategy=fsdp"], "trainer.devices=1 with trainer.strategy=fsdp: allowed are several devices"),
        (
            [*FSDP, "trainer.precision=16-mixed"],
            "trainer.precision=16-mixed with trainer.strategy=fsdp: allowed are 32",
        ),
        ([*FSDP, "finetune=qlora"], "finetune.quantize=nf4 with trainer.strategy=fsdp: allowed are null"),
        ([*FSDP, "memory.optimizer=adamw_8bit"], "memory.optimizer=adamw_8bit with trainer.strategy=fsdp: allowed are"),
        ([*FSDP, "memory.offload_vision=true"], "memory.offload_vision=true with trainer.strategy=fsdp: allowed are"),
    ],
)
def test_values_that_do_not_go_together_are_one_line(given: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(given)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", [FSDP, ["trainer.strategy=fsdp", "trainer.num_nodes=2"], ["hardware=a100_80gb_x8"]])
def test_what_goes_together_composes(given: list[str]) -> None:
    assert resolve(given)["trainer"]["strategy"] == "fsdp"
