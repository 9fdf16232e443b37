"""The data of a run for Lightning: a shuffled endless stream to train on, and one pass each to validate and to test."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch import LightningDataModule

from llava_mini.data.feature_store import FeatureStore
from llava_mini.data.labels import ConversationTokenizer
from llava_mini.data.samples import SampleReader
from llava_mini.data.shards import ShardSet
from llava_mini.data.stream import BatchLoader, Order, PlannedStream, SequentialOrder, ShuffledOrder
from llava_mini.errors import UserError
from llava_mini.views import ImageTransform


class VLMDataModule(LightningDataModule):
    """Loaders of `VLMBatch`.

    A training run is one Lightning epoch of `num_batches` batches, however often it passes over the data; its loader
    keeps its place in Lightning's checkpoints.

    Args:
        shards: Shard sets by split: "train", "val", "test"; a split that is not there cannot be loaded.
        tokenize: What makes tokens of conversations.
        transform: What makes pixels of images.
        features: Feature stores by split; all splits in `shards` have one, or none has. With features `transform`
            is not used.
        batch_size: Of training.
        eval_batch_size: Of validation and test.
        num_batches: Batches of the training run.
        seed: Of the order of training.
        num_workers: Processes that make batches, for each loader.
        pin_memory: Whether batches are put in page-locked memory.

    Raises:
        UserError: an argument is impossible, or features and shards do not fit.
    """

    def __init__(
        self,
        *,
        shards: Mapping[str, ShardSet],
        tokenize: ConversationTokenizer,
        transform: ImageTransform | None = None,
        features: Mapping[str, FeatureStore] | None = None,
        batch_size: int,
        eval_batch_size: int,
        num_batches: int,
        seed: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__()
        if features and set(features) != set(shards):
            raise UserError(f"features are given for {sorted(features)}, shards for {sorted(shards)}")
        self.readers = {
            split: SampleReader(
                each,
                tokenize,
                transform=None if features else transform,
                features=features[split] if features else None,
            )
            for split, each in shards.items()
        }
        self.batch_size, self.eval_batch_size, self.num_batches = batch_size, eval_batch_size, num_batches
        self.seed, self.num_workers, self.pin_memory = seed, num_workers, pin_memory

    def train_dataloader(self) -> BatchLoader:
        """`num_batches` batches in shuffled order."""
        shards = self._reader("train").shards
        order = ShuffledOrder(len(shards), shards.fingerprint, self.seed)
        return self._loader("train", order, self.batch_size, self.num_batches)

    def val_dataloader(self) -> BatchLoader:
        """One pass in the order of the shards."""
        return self._loader("val", SequentialOrder(), self.eval_batch_size, None)

    def test_dataloader(self) -> BatchLoader:
        """One pass in the order of the shards."""
        return self._loader("test", SequentialOrder(), self.eval_batch_size, None)

    def _loader(self, split: str, order: Order, batch_size: int, num_batches: int | None) -> BatchLoader:
        stream = PlannedStream(self._reader(split), order, batch_size=batch_size, num_batches=num_batches)
        return BatchLoader(stream, num_workers=self.num_workers, pin_memory=self.pin_memory)

    def _reader(self, split: str) -> SampleReader:
        if split not in self.readers:
            raise UserError(f"no shards were given for {split}; given: {', '.join(self.readers)}")
        return self.readers[split]
