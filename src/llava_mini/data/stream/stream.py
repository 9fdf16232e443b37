"""Batches whose samples are a pure function of the plan, (content, seed, position), and of nothing else.

Samples are distributed, not shards: batch b of rank r of R contains the positions from (b * R + r) * batch_size on, so
all ranks have the same number of batches. Workers make whole batches, which come in order for any number of workers.
The state of a run is therefore one number, the position after the last batch that was trained on. For example, with
2 ranks and batches of 3:

    position  0  1  2  3  4  5  6  7  8  9 10 11
    rank 0   [   b 0  ]         [   b 1  ]
    rank 1             [   b 0  ]         [   b 1  ]

A sample that cannot be used is a row without labels at its position, so no other sample moves. Where several sets are
read, a sample's key begins with the name of its set.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from llava_mini.batch import BadSample, VLMBatch
from llava_mini.data.stream.loading import Transport, made_in_order
from llava_mini.data.stream.order import Order
from llava_mini.data.stream.samples import Sample, SampleReader, collate, placeholder
from llava_mini.errors import SampleError, UserError, refused

logger = logging.getLogger("llava_mini.data")

Argument = TypeVar("Argument")
Result = TypeVar("Result")


class PlannedStream:
    """The batches of one rank, of samples that `order` names and `readers` read.

    There are `num_batches` batches of each rank in all. None means one pass over the data, whose last batches may be
    smaller, but contain at least a placeholder sample.
    """

    def __init__(
        self,
        readers: Sequence[SampleReader],
        order: Order,
        *,
        batch_size: int,
        num_batches: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1 or (num_batches is not None and num_batches < 0):
            why = f"batch_size={batch_size} must be >= 1 and num_batches={num_batches} >= 0"
            key, value = ("batch_size", batch_size) if batch_size < 1 else ("num_batches", num_batches)
            raise UserError(why, key=key, value=value)
        self.readers, self.order = list(readers), order
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.positions_per_batch = batch_size * world_size  # of all ranks together
        one_pass = sum(len(reader.shards) for reader in readers)
        self.num_positions = one_pass if num_batches is None else num_batches * self.positions_per_batch
        self.num_batches = -(-self.num_positions // self.positions_per_batch)
        self._prefixes = _prefixes([str(reader.shards.folder) for reader in readers])

    def __iter__(self) -> Iterator[VLMBatch]:
        return map(self.batch, range(self.num_batches))

    def batch(self, number: int) -> VLMBatch:
        """Return batch `number`; an unusable sample is logged, named in `skipped` and is a row without labels."""
        pad_token_id = self.readers[0].tokenize.pad_token_id
        first = (number * self.world_size + self.rank) * self.batch_size
        positions = range(first, min(first + self.batch_size, self.num_positions))
        places = [self.order(position) for position in positions]
        samples, skipped = [], []
        for position, (source, index), found in zip(positions, places, self._read(places), strict=True):
            shards = self.readers[source].shards
            key = self._prefixes[source] + shards.key(index)
            if isinstance(found, SampleError):
                bad = BadSample(key, f"{shards.folder}/{shards.shard_name(index)}", str(found), position)
                logger.warning("skipped %s in %s: %s", bad.key, bad.shard, bad.reason)
                skipped.append(bad)
                samples.append(placeholder(key, pad_token_id))
            else:
                samples.append(replace(found, key=key))
        behind = min((number + 1) * self.positions_per_batch, self.num_positions)
        return collate(samples or [placeholder("", pad_token_id)], pad_token_id, position=behind, skipped=skipped)

    def _read(self, places: Sequence[tuple[int, int]]) -> list[Sample | SampleError]:
        """Return the sample at each place, (number of its set, number in its set), or what is wrong with it.

        All texts come first and then all images, so that each kind of work still finds its data in the processor's
        caches. This saves a tenth to a quarter of a batch's time.
        """
        readers = [self.readers[source] for source, _ in places]
        drafts = [_tried(reader.draft, index) for reader, (_, index) in zip(readers, places, strict=True)]
        return [
            draft if isinstance(draft, SampleError) else _tried(reader.finished, draft)
            for reader, draft in zip(readers, drafts, strict=True)
        ]


def _tried(function: Callable[[Argument], Result], argument: Argument) -> Result | SampleError:
    try:
        return function(argument)
    except SampleError as error:
        return error


class BatchLoader:
    """The batches of a stream, made by worker processes that end with this process.

    The loader has a length, so Lightning does not prefetch. It has no state: the batches themselves say what was
    trained on, and `StreamPosition` stores it.

    Attributes:
        start_position: Position at which a pass begins; read when the first batch is requested.
    """

    def __init__(
        self,
        stream: PlannedStream,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
        transport: Transport = "shared_memory",
    ) -> None:
        if num_workers < 0:
            raise refused("num_workers", num_workers, allowed="0 and above")
        self.stream, self.num_workers, self.pin_memory, self.transport = stream, num_workers, pin_memory, transport
        self.start_position = 0

    def __len__(self) -> int:
        """Return the number of all batches of the stream, including those before the start."""
        return self.stream.num_batches

    def __iter__(self) -> Iterator[VLMBatch]:
        start, rest = divmod(self.start_position, self.stream.positions_per_batch)
        if rest:
            raise ValueError(
                f"position {self.start_position} lies within a batch of {self.stream.positions_per_batch} samples"
            )
        numbers = range(start, len(self))
        yield from made_in_order(
            self.stream.batch,
            numbers,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            transport=self.transport,
        )


def _prefixes(folders: Sequence[str]) -> list[str]:
    """Return prefixes that make keys of several sets differ: the sets' names, or their locations if names repeat."""
    if len(folders) == 1:
        return [""]
    names = [folder.rstrip("/").rpartition("/")[2] for folder in folders]
    return [f"{name}/" for name in (names if len(set(names)) == len(names) else folders)]
