"""How ranks share a run: the strategy of a config, and what FSDP refuses."""

from collections.abc import Callable
from typing import Any

import pytest
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from llava_mini import build
from llava_mini.build.strategy import build_strategy
from llava_mini.data.datamodule import VLMDataModule
from llava_mini.errors import UserError
from llava_mini.stages.callbacks import Clock
from llava_mini.stages.sharding import Gathered

FSDP = ["trainer.strategy=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"]


def test_one_rank_needs_no_strategy_and_several_are_ddp(config_of: Callable[..., dict[str, Any]]) -> None:
    assert build_strategy(config_of(), 1) == "auto"
    assert isinstance(build_strategy(config_of("trainer.devices=2"), 2), DDPStrategy)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fsdp_deals_to_all_ranks_and_writes_one_file(config_of: Callable[..., dict[str, Any]], precision: str) -> None:
    data = VLMDataModule(splits={}, batch_size=1, eval_batch_size=1, num_batches=0)
    config = config_of(*FSDP, f"trainer.precision={precision}")
    trainer: Any = build.build_trainer(config, data, Clock(), [])
    strategy = trainer.strategy
    assert isinstance(strategy, ModelParallelStrategy)
    assert (strategy._data_parallel_size, strategy._tensor_parallel_size) == (2, 1)
    assert strategy._save_distributed_checkpoint is False
    assert trainer.gradient_clip_val == 1.0
    assert any(isinstance(callback, Gathered) for callback in trainer.callbacks)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("trainer.devices=1", "trainer.devices=1 with trainer.strategy=fsdp: allowed are several devices"),
        ("trainer.precision=16-mixed", "trainer.precision=16-mixed with trainer.strategy=fsdp: allowed are 32-true, "),
        ("finetune=qlora", "finetune.quantize=nf4 with trainer.strategy=fsdp: allowed are null"),
        ("savers.optimizer=adamw_8bit", "savers.optimizer=adamw_8bit with trainer.strategy=fsdp: allowed are adamw"),
        ("savers.offload_vision=true", "savers.offload_vision=true with trainer.strategy=fsdp: allowed are false"),
    ],
)
def test_what_cannot_be_dealt_is_one_line(config_of: Callable[..., dict[str, Any]], override: str, told: str) -> None:
    config = config_of(*FSDP, override)
    with pytest.raises(UserError, match=told):
        build_strategy(config, build.num_ranks(config))
