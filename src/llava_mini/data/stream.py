"""Batches of a shard set in an order that is a pure function of (content, seed, position).

Nothing about the order depends on the number of workers or on what was read before, so the state of a run is one
number: the next batch. Worker w of W makes batches w, w + W, ...; DataLoader takes from its workers in turn, which
gives all batches in order for any W. A sample that cannot be used makes its batch smaller and moves no other sample.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from llava_mini.batch import VLMBatch
from llava_mini.data.collate import collate
from llava_mini.data.errors import SampleError
from llava_mini.data.samples import SampleReader
from llava_mini.errors import UserError

logger = logging.getLogger("llava_mini.data")

_BLOCK = 32  # samples that lie together in a shard and move together
_WINDOW = 64  # blocks whose samples are then mixed


class Order(Protocol):
    """Which sample stands at a position."""

    fingerprint: str

    def __call__(self, position: int) -> int: ...


class SequentialOrder:
    """The order of the shards, for evaluation."""

    fingerprint = "sequential"

    def __call__(self, position: int) -> int:
        return position


class ShuffledOrder:
    """Endless epochs, each with every sample once.

    An epoch permutes blocks of consecutive samples (reading stays nearly sequential on slow disks) and then mixes the
    samples of every window of blocks.
    """

    def __init__(self, num_samples: int, content: str, seed: int) -> None:
        """Args: the number of samples, the fingerprint of the data, and the seed."""
        self.num_samples = num_samples
        self.fingerprint = hashlib.sha256(f"{content} {num_samples} {seed} {_BLOCK} {_WINDOW}".encode()).hexdigest()
        self._key = int(self.fingerprint[:16], 16)
        self._epoch = -1
        self._order: NDArray[np.int64] = np.zeros(0, np.int64)

    def __call__(self, position: int) -> int:
        epoch, place = divmod(position, self.num_samples)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self.epoch(epoch)
        return int(self._order[place])

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """The samples of an epoch in order."""
        rng = np.random.Generator(np.random.Philox(key=[self._key, epoch]))
        starts = rng.permutation(np.arange(0, self.num_samples, _BLOCK))
        order = np.concatenate([np.arange(s, min(s + _BLOCK, self.num_samples)) for s in starts])
        for start in range(0, self.num_samples, _BLOCK * _WINDOW):
            rng.shuffle(order[start : start + _BLOCK * _WINDOW])
        return order


class PlannedStream(IterableDataset[VLMBatch]):
    """Batch b holds the samples at positions b * batch_size and on.

    Args:
        reader: Reads a sample by number.
        order: Which sample stands where.
        batch_size: Samples of a batch.
        num_batches: Batches in all; None for one pass over the data, whose last batch may be smaller.
    """

    def __init__(self, reader: SampleReader, order: Order, *, batch_size: int, num_batches: int | None = None) -> None:
        if batch_size < 1 or (num_batches is not None and num_batches < 0):
            raise UserError(f"batch_size={batch_size} must be >= 1 and num_batches={num_batches} >= 0")
        self.reader, self.order, self.batch_size = reader, order, batch_size
        self.num_positions = len(reader.shards) if num_batches is None else num_batches * batch_size
        self.num_batches = -(-self.num_positions // batch_size)
        self.start_batch = 0

    @property
    def plan(self) -> str:
        """Equal for streams that give the same batches."""
        shards = self.reader.shards.fingerprint
        return hashlib.sha256(f"{shards} {self.order.fingerprint} {self.batch_size}".encode()).hexdigest()

    def __iter__(self) -> Iterator[VLMBatch]:
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for batch in range(self.start_batch + number, self.num_batches, workers):
            yield self.batch(batch)

    def batch(self, number: int) -> VLMBatch:
        """Batch `number`, without the samples that cannot be used; those are logged and named in `skipped`."""
        samples, skipped = [], []
        first = number * self.batch_size
        for position in range(first, min(first + self.batch_size, self.num_positions)):
            index = self.order(position)
            try:
                samples.append(self.reader(index))
            except SampleError as error:
                key = self.reader.shards.key(index)
                logger.warning("skipped %s in %s: %s", key, self.reader.shards.shard_name(index), error)
                skipped.append(f"{key}: {error}")
        return collate(samples, self.reader.tokenize.pad_token_id, skipped)


class BatchLoader:
    """The batches of a stream, made by worker processes.

    Its state counts the batches that were taken, not those that workers made ahead. It has a length, so Lightning
    does not fetch ahead either.
    """

    def __init__(self, stream: PlannedStream, *, num_workers: int = 0, pin_memory: bool = False) -> None:
        if num_workers < 0:
            raise UserError(f"num_workers={num_workers} must be >= 0")
        self.stream, self.num_workers, self.pin_memory = stream, num_workers, pin_memory
        self._resume_at = self._next_batch = 0

    def __len__(self) -> int:
        """All batches of the stream, also those before the state that was loaded."""
        return self.stream.num_batches

    def __iter__(self) -> Iterator[VLMBatch]:
        start = self._next_batch = self.stream.start_batch = self._resume_at
        self._resume_at = 0  # only the first pass is one that goes on
        loader = DataLoader(self.stream, batch_size=None, num_workers=self.num_workers, pin_memory=self.pin_memory)
        for number, batch in enumerate(loader, start):
            self._next_batch = number + 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The next batch, and the plan it belongs to."""
        return {"next_batch": self._next_batch, "plan": self.stream.plan}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where `state` was taken.

        Raises:
            UserError: it was taken from other data, another seed or another batch size.
        """
        if state["plan"] != self.stream.plan:
            raise UserError("the checkpoint was made with other data, data seed or batch size than this run's")
        self._resume_at = self._next_batch = int(state["next_batch"])
