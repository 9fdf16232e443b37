"""How ranks share a run: the strategy of a config."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from llava_mini import assembly
from llava_mini.assembly.trainer import build_strategy
from llava_mini.config import Config
from llava_mini.data.stream.datamodule import VLMDataModule
from llava_mini.stages.callbacks import Clock
from llava_mini.stages.sharding import Gathered

FSDP = ["trainer.strategy=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"]


def test_one_rank_needs_no_strategy_and_several_are_ddp(config_of: Callable[..., Config]) -> None:
    assert build_strategy(config_of().trainer, 1) == "auto"
    several = build_strategy(config_of("trainer.devices=2", "trainer.rank_timeout=90").trainer, 2)
    assert isinstance(several, DDPStrategy)
    assert several._timeout == timedelta(seconds=90)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fsdp_deals_to_all_ranks_and_writes_one_file(config_of: Callable[..., Config], precision: str) -> None:
    data = VLMDataModule(splits={}, batch_size=1, eval_batch_size=1, num_batches=0)
    config = config_of(*FSDP, f"trainer.precision={precision}")
    trainer: Any = assembly.build_trainer(config, data, Clock(), [])
    strategy = trainer.strategy
    assert isinstance(strategy, ModelParallelStrategy)
    assert (strategy._data_parallel_size, strategy._tensor_parallel_size) == (2, 1)
    assert strategy._save_distributed_checkpoint is False
    assert trainer.gradient_clip_val == 1.0
    assert any(isinstance(callback, Gathered) for callback in trainer.callbacks)
