"""Values that cannot be combined are refused in one line as soon as the config is composed."""

import pytest

from llava_mini.config import resolve
from llava_mini.errors import UserError

FSDP = ["trainer.strategy=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"]
PRECISIONS = "32-true, bf16-mixed, bf16-true, 16-true"


@pytest.mark.parametrize(
    ("given", "key", "value", "allowed"),
    [
        (["finetune=qlora", "finetune.language_model=full"], "finetune.language_model", "full", "lora, frozen"),
        (["finetune.prefusion=lora"], "finetune.lora", None, "finetune.lora={rank: 16, alpha: 32, ...}"),
        (["memory.frozen_dtype=float16"], "memory.frozen_dtype", "float16", "null, or a mixed precision"),
        (["trainer.strategy=fsdp"], "trainer.devices", 1, "several devices"),
        ([*FSDP, "trainer.precision=16-mixed"], "trainer.precision", "16-mixed", PRECISIONS),
        ([*FSDP, "finetune=qlora"], "finetune.quantize", "nf4", "null"),
        ([*FSDP, "memory.optimizer=adamw_8bit"], "memory.optimizer", "adamw_8bit", "adamw"),
        ([*FSDP, "memory.offload_vision=true"], "memory.offload_vision", "true", "false"),
        (["model.weights=parts"], "model.vision_tower", None, "a folder or a Hub id (owner/name)"),
        (
            ["data.val=[board-val, board-val]"], "data.val", "board-val",
            "each set once, its share a weight",
        ),
    ],
)  # fmt: skip
def test_values_that_cannot_be_combined(given: list[str], key: str, value: object, allowed: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(given)
    assert (caught.value.key, caught.value.value, caught.value.allowed) == (key, value, allowed)
    assert key in str(caught.value) and allowed in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("given", [FSDP, ["trainer.strategy=fsdp", "trainer.num_nodes=2"], ["hardware=a100_80gb_x8"]])
def test_values_that_can_be_combined(given: list[str]) -> None:
    assert resolve(given).trainer.strategy == "fsdp"
