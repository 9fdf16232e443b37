"""Batches made by worker processes, in order; any failure of a worker ends the run with a one-line error.

Workers pass tensors in shared memory, on Linux in /dev/shm, which is small in a container (Docker gives 64 MB). With
DataLoader alone, a batch that does not fit there is lost in a thread of its worker, and the run waits forever. So the
free space is checked against the first batch, each worker puts its batches there itself, where a failure is noticed,
and no wait is endless. Batches can pass through pipes instead, which need no room and copy every byte a few times more.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from llava_mini.batch import VLMBatch
from llava_mini.data.errors import TIMED_OUT, loader_failures_reported
from llava_mini.errors import UserError
from llava_mini.processes import end_with_parent
from llava_mini.units import size_text

Item = TypeVar("Item")
Transport = Literal["shared_memory", "pipe"]

_SHARED_MEMORY = Path("/dev/shm")
_AHEAD = 2  # batches that each worker makes before they are requested
_LOOK_SECONDS = 5  # after which torch checks whether all workers live; it notices most deaths at once, but not all
_LONGEST_WAIT = 1800  # seconds for a batch; no storage is this slow, so a worker hangs or its batch is lost


def made_in_order(
    make: Callable[[int], Item],
    numbers: Sequence[int],
    *,
    num_workers: int,
    setting: str = "data.num_workers",
    pin_memory: bool = False,
    transport: Transport = "shared_memory",
) -> Iterator[Item]:
    """Yield `make(number)` for all numbers, in their order.

    An item is a batch, a tensor or a text. This process makes the first one; of the others, worker w of W makes those
    at w, w + W, ... Workers end with this process, and `make` must be picklable if they are spawned; with 0 workers all
    items are made here. `setting` names their number in messages. If there is a GPU, `pin_memory` puts tensors in
    page-locked memory. Workers pass tensors by `transport`.

    Raises:
        UserError: /dev/shm is too small, or `make` raised a UserError in a worker.
        LoaderError: A worker died, or returned nothing for half an hour.
    """
    if not num_workers or not numbers:
        yield from DataLoader(_Dealt(make, numbers), batch_size=None, pin_memory=pin_memory)
        return
    first = make(numbers[0])  # made here, so that its size is known before there are workers
    through_pipes = transport == "pipe"
    if not through_pipes:
        _check_room(first, num_workers, setting)
    others, workers = active_children(), list[BaseProcess]()
    with loader_failures_reported(setting, lambda: [worker.exitcode for worker in workers]):
        rest = iter(
            DataLoader(
                _Dealt(make, numbers[1:], setting, through_pipes=through_pipes),
                batch_size=None,
                num_workers=num_workers,
                pin_memory=pin_memory and not through_pipes,
                prefetch_factor=_AHEAD,
                timeout=_LOOK_SECONDS,
                worker_init_fn=partial(_begin_worker, os.getpid()),
            )
        )
        workers += [child for child in active_children() if child not in others]
        yield from DataLoader(_Dealt(lambda _: first, numbers[:1]), batch_size=None, pin_memory=pin_memory)
        for item in _awaited(rest):
            if isinstance(item, _Failed):
                raise item.error
            yield _unpacked(item, pin_memory) if isinstance(item, _Packed) else item


def _awaited(items: Iterator[Item]) -> Iterator[Item]:
    """Yield the items of a loader; timeouts are ignored until a wait reaches `_LONGEST_WAIT`, then raised."""
    waited = 0
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except RuntimeError as error:
            waited += _LOOK_SECONDS
            if not str(error).startswith(TIMED_OUT) or waited >= _LONGEST_WAIT:
                raise
        else:
            waited = 0
            yield item


@dataclass(frozen=True)
class _Failed:
    """Error that a worker passes instead of an item, because DataLoader would make one long line of it."""

    error: UserError


@dataclass(frozen=True)
class _Packed:
    """Item as bytes, in which torch finds no tensor to put into shared memory."""

    content: bytes


class _Dealt(IterableDataset[Item | _Failed | _Packed], Generic[Item]):
    """Items of numbers, sharded over the workers."""

    def __init__(
        self, make: Callable[[int], Item], numbers: Sequence[int], setting: str = "", *, through_pipes: bool = False
    ) -> None:
        self.make, self.numbers, self.setting, self.through_pipes = make, numbers, setting, through_pipes

    def __iter__(self) -> Iterator[Item | _Failed | _Packed]:
        worker = get_worker_info()
        if worker is None:
            yield from map(self.make, self.numbers)
            return
        for number in self.numbers[worker.id :: worker.num_workers]:
            try:
                item = self.make(number)
                yield _Packed(pickle.dumps(item)) if self.through_pipes else _shared(item, self.setting)
            except UserError as error:
                yield _Failed(error)


def _tensors(item: object) -> list[Tensor]:
    if isinstance(item, VLMBatch):
        return list(item.model_inputs().values())
    return [item] if isinstance(item, Tensor) else []


def _unpacked(packed: _Packed, pin_memory: bool) -> Any:
    """Return the item that a worker has packed."""
    item = pickle.loads(packed.content)
    if pin_memory and torch.cuda.is_available() and isinstance(item, VLMBatch | Tensor):
        return item.pin_memory()
    return item


def _shared(item: Item, setting: str) -> Item:
    """Return an item with its tensors in shared memory."""
    try:
        for tensor in _tensors(item):
            tensor.share_memory_()
    except RuntimeError as error:  # no space left, too many open files
        reason = str(error).splitlines()[0]
        raise UserError(f"a worker could not hand over what it had made ({reason}): {_advice(setting)}") from None
    return item


def _check_room(first: object, num_workers: int, setting: str) -> None:
    """Check that the batches made ahead and the one in use fit together, if all are as large as the first."""
    if not _SHARED_MEMORY.is_dir():
        return
    found = os.statvfs(_SHARED_MEMORY)
    free, held = found.f_bavail * found.f_frsize, num_workers * _AHEAD + 1
    size = sum(-(-tensor.nbytes // found.f_frsize) * found.f_frsize for tensor in _tensors(first))
    if found.f_blocks and held * size > free:  # no blocks means no limit
        raise UserError(
            f"{_SHARED_MEMORY} has {size_text(free)} free, and with {num_workers} workers it holds {held} batches of"
            f" {size_text(size)}: {_advice(setting)}"
        )


def _advice(setting: str) -> str:
    return (
        f"take fewer workers ({setting}=0 needs no shared memory) or smaller batches, give more of it (docker run"
        " --shm-size=8g, or --ipc=host), or pass batches through pipes (data.worker_transport=pipe)"
    )


def _begin_worker(parent_pid: int, _number: int) -> None:
    end_with_parent(parent_pid)
