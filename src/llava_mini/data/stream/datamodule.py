"""Lightning data module of a run: an endless stream for training, and one pass each for validation and test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from lightning.pytorch import LightningDataModule

from llava_mini.batch import VLMBatch
from llava_mini.data.stream.loading import Transport
from llava_mini.data.stream.order import Mixture, Order, SequentialOrder, ShuffledOrder
from llava_mini.data.stream.pixels import normalized
from llava_mini.data.stream.samples import SampleReader
from llava_mini.data.stream.stream import BatchLoader, PlannedStream
from llava_mini.errors import refused


@dataclass(frozen=True)
class Mix:
    """The data of a split: readers of shard sets, all with pixels or all with features, and the same `data.views`.

    `weights` mix the sets in training, see `llava_mini.data.stream.order.Mixture`; None pools them as one. Validation
    and test make one pass over every set, whatever the weights.
    """

    readers: Sequence[SampleReader]
    weights: Sequence[float] | None = None


class VLMDataModule(LightningDataModule):
    """Loaders of `VLMBatch`, with this rank's share of the data when several ranks train together.

    A training run is one Lightning epoch of `num_batches` batches, however often it passes over the data.
    `StreamPosition` stores its position in Lightning's checkpoints.

    Args:
        splits: Data by split: "train", "val", "test"; a missing split cannot be loaded.
        batch_size: Batch size of training, on each rank.
        eval_batch_size: Batch size of validation and test, on each rank.
        num_batches: Number of batches of the training run, on each rank.
        seed: Seed of the training order.
        num_workers: Number of worker processes that make batches, for each loader.
        normalize: Mean and standard deviation of each color, between 0 and 1; not needed with features.
        pin_memory: Whether batches are put in page-locked memory.
        transport: How workers pass batches: in shared memory, or through pipes.
    """

    def __init__(
        self,
        *,
        splits: Mapping[str, Mix],
        batch_size: int,
        eval_batch_size: int,
        num_batches: int,
        seed: int = 0,
        num_workers: int = 0,
        normalize: tuple[Sequence[float], Sequence[float]] | None = None,
        pin_memory: bool = False,
        transport: Transport = "shared_memory",
    ) -> None:
        super().__init__()
        if normalize is None and any(reader.transform for mix in splits.values() for reader in mix.readers):
            raise ValueError("pixels need `normalize`, the mean and standard deviation of their colors")
        self.splits = dict(splits)
        self.batch_size, self.eval_batch_size, self.num_batches = batch_size, eval_batch_size, num_batches
        self.seed, self.normalize = seed, normalize
        self.num_workers, self.pin_memory, self.transport = num_workers, pin_memory, transport

    @property
    def plan(self) -> str:
        """Fingerprint that is equal for runs on the same samples in the same order, whatever the batch size."""
        return self._training_order().fingerprint

    def train_dataloader(self) -> BatchLoader:
        return self._loader("train", self._training_order(), self.batch_size, self.num_batches)

    def val_dataloader(self) -> BatchLoader:
        return self._loader("val", self._stored_order("val"), self.eval_batch_size, None)

    def test_dataloader(self) -> BatchLoader:
        return self._loader("test", self._stored_order("test"), self.eval_batch_size, None)

    def evaluation_batches(self, split: str, device: torch.device | str) -> Iterator[VLMBatch]:
        """Yield the batches of a whole split, whatever the rank, on `device` and ready for the model."""
        stream = PlannedStream(self._mix(split).readers, self._stored_order(split), batch_size=self.eval_batch_size)
        for batch in self._batches(stream):
            yield self.on_after_batch_transfer(batch.to(device), 0)

    def on_after_batch_transfer(self, batch: VLMBatch, dataloader_idx: int) -> VLMBatch:
        """Convert pixels to normalized floats on the model's device, so that only a quarter of the bytes is copied."""
        if batch.pixel_values is None or self.normalize is None:
            return batch
        return replace(batch, pixel_values=normalized(batch.pixel_values, *self.normalize))

    def _loader(self, split: str, order: Order, batch_size: int, num_batches: int | None) -> BatchLoader:
        stream = PlannedStream(
            self._mix(split).readers,
            order,
            batch_size=batch_size,
            num_batches=num_batches,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
        )
        return self._batches(stream)

    def _batches(self, stream: PlannedStream) -> BatchLoader:
        return BatchLoader(stream, num_workers=self.num_workers, pin_memory=self.pin_memory, transport=self.transport)

    def _training_order(self) -> Order:
        mix = self._mix("train")
        sets = [reader.shards for reader in mix.readers]
        if mix.weights is None:
            return ShuffledOrder(sets, self.seed)
        return Mixture(sets, mix.weights, self.seed)

    def _stored_order(self, split: str) -> Order:
        return SequentialOrder([reader.shards for reader in self._mix(split).readers])

    def _mix(self, split: str) -> Mix:
        if split not in self.splits:
            given = ", ".join(self.splits) or "none"
            raise refused(f"data.{split}", None, f"this needs a shard set for {split}; there are {given}")
        return self.splits[split]
