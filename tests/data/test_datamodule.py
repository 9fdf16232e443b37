"""Lightning trains on the planned stream, and a run that was stopped goes on with the very next batch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from llava_mini.batch import VLMBatch
from llava_mini.data.datamodule import VLMDataModule
from llava_mini.data.feature_store import FeatureRecipe, FeatureStore
from llava_mini.data.labels import ConversationTokenizer
from llava_mini.data.shards import ShardSet
from llava_mini.errors import UserError
from llava_mini.views import ImageTransform

MakeModule = Callable[..., VLMDataModule]


class Recorder(LightningModule):
    """Notes the keys it is given, and stops the run when it is told to."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.stop_at = stop_at
        self.trained: list[list[str]] = []
        self.validated: list[str] = []

    def training_step(self, batch: VLMBatch, index: int) -> Tensor:
        if index == self.stop_at:
            raise KeyError("stopped")
        self.trained.append(batch.keys)
        return self.weight * batch.input_ids.float().mean()

    def validation_step(self, batch: VLMBatch, index: int) -> None:
        self.validated += batch.keys

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture
def module(world: Path, tokenize: ConversationTokenizer, transform: ImageTransform) -> MakeModule:
    def make(**changes: Any) -> VLMDataModule:
        shards = {split: ShardSet(world / f"instruct-{split}") for split in ("train", "val", "test")}
        arguments: dict[str, Any] = dict(
            shards=shards, tokenize=tokenize, transform=transform, batch_size=4, eval_batch_size=5, num_batches=6
        )
        return VLMDataModule(**{**arguments, **changes})

    return make


def run(recorder: Recorder, data: VLMDataModule, folder: Path, checkpoint: str | None = None) -> None:
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
        val_check_interval=3,
        callbacks=[ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)],
    )
    trainer.fit(recorder, data, ckpt_path=checkpoint, weights_only=True)


@pytest.mark.filterwarnings("ignore:The .*dataloader.* does not have many workers")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_run_goes_on_with_the_next_batch(module: MakeModule, tmp_path: Path, workers: int) -> None:
    whole = Recorder()
    run(whole, module(), tmp_path / "whole")
    assert len(whole.trained) == 6
    stopped = Recorder(stop_at=4)
    with pytest.raises(KeyError):
        run(stopped, module(num_workers=workers), tmp_path / "stopped")
    resumed = Recorder()
    run(resumed, module(num_workers=workers), tmp_path / "resumed", str(tmp_path / "stopped" / "step=4.ckpt"))
    assert stopped.trained + resumed.trained == whole.trained
    assert resumed.trained == whole.trained[4:]


def test_validation_is_the_whole_split_each_time(module: MakeModule, tmp_path: Path) -> None:
    data = module()
    recorder = Recorder()
    run(recorder, data, tmp_path)
    shards = data.readers["val"].shards
    split = [shards.key(index) for index in range(len(shards))]
    assert recorder.validated == split[:5] + split + split  # one batch to see that it works, then twice all


def test_splits_are_their_own_shards(module: MakeModule) -> None:
    data = module()
    for split, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        shards = data.readers[split].shards
        assert [key for batch in loader for key in batch.keys] == [shards.key(i) for i in range(len(shards))]
    assert all(key.startswith("instruct-train") for batch in data.train_dataloader() for key in batch.keys)


def test_the_seed_orders_training(module: MakeModule) -> None:
    orders = [[batch.keys for batch in module(seed=seed).train_dataloader()] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_features_stand_for_pixels(module: MakeModule, tmp_path: Path, transform: ImageTransform) -> None:
    recipe = FeatureRecipe("mean", (1, 32, 32))
    shards = {split: reader.shards for split, reader in module().readers.items()}
    stores = {
        split: FeatureStore.build(tmp_path / split, each, lambda pixels: pixels.mean(2), recipe, transform)
        for split, each in shards.items()
    }
    batch = next(iter(module(features=stores, num_workers=1).train_dataloader()))
    assert batch.pixel_values is None
    assert batch.image_features is not None
    assert batch.image_features.shape == (4, 1, 32, 32)
    with pytest.raises(UserError, match="were not made from"):
        module(features={**stores, "val": stores["test"]})
    del stores["val"]
    with pytest.raises(UserError, match=r"features are given for \['test', 'train'\]"):
        module(features=stores)


def test_a_split_that_was_not_given_is_named(module: MakeModule, world: Path) -> None:
    data = module(shards={"val": ShardSet(world / "instruct-val")})
    with pytest.raises(UserError, match="no shards were given for train; given: val"):
        data.train_dataloader()
