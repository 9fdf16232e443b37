"""Workers make items in order; whatever stops one is told in one line, and nothing is waited for for ever."""

import ctypes
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from llava_mini.batch import BadSample, VLMBatch
from llava_mini.data.errors import LoaderError, loader_failures_reported
from llava_mini.data.stream import loading
from llava_mini.data.stream.loading import Transport, made_in_order
from llava_mini.errors import UserError

FORK = multiprocessing.get_context("fork")
ADVICE = (
    "take fewer workers (data.num_workers=0 needs no shared memory) or smaller batches, give more of it (docker run"
    " --shm-size=8g, or --ipc=host), or pass batches through pipes (data.worker_transport=pipe)"
)


@pytest.fixture
def no_workers_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Loaders that an error ended lie in a cycle, and torch waits 5 seconds for workers that do not hear of it."""
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    monkeypatch.setattr(loading, "_LOOK_SECONDS", 1)
    yield
    gc.collect()


def make(number: int) -> Tensor:
    return torch.full((1000,), number, dtype=torch.uint8)


def in_worker_2(number: int) -> bool:
    """Whether this is a worker that makes item 2."""
    return get_worker_info() is not None and number == 2


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_items_come_in_their_order(workers: int) -> None:
    assert [int(item[0]) for item in made_in_order(make, range(3, 12), num_workers=workers)] == list(range(3, 12))
    assert list(made_in_order(str, [5, 2, 7], num_workers=workers)) == ["5", "2", "7"]
    assert list(made_in_order(make, [], num_workers=workers)) == []


def test_the_first_item_is_made_here_and_the_others_in_workers_that_begin_before_it_is_taken() -> None:
    items = made_in_order(lambda number: str(os.getpid()), range(3), num_workers=1)
    assert next(items) == str(os.getpid())
    (worker,) = multiprocessing.active_children()
    assert list(items) == [str(worker.pid)] * 2


def statvfs(free: int, blocks: int = 1) -> Callable[[Any], SimpleNamespace]:
    return lambda path: SimpleNamespace(f_bavail=free // 4096, f_frsize=4096, f_blocks=blocks)


def batch(number: int) -> VLMBatch:
    ids = torch.zeros(4, 100, dtype=torch.int64)
    return VLMBatch(ids, ids.clone(), ids.clone(), torch.ones(4, dtype=torch.int64), torch.zeros(4, 1, 3, 8, 8))


def test_room_in_shared_memory_is_checked_against_the_first_batch_before_workers_begin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = 5 * 4096  # ids, mask, labels, numbers of frames and pixels: a page each
    monkeypatch.setattr(os, "statvfs", statvfs(5 * size - 4096))
    with pytest.raises(UserError) as told:
        next(made_in_order(batch, range(9), num_workers=2))
    message = f"/dev/shm has 96.00 KiB free, and with 2 workers it holds 5 batches of 20.00 KiB: {ADVICE}"
    assert str(told.value) == message and multiprocessing.active_children() == []
    assert len(list(made_in_order(batch, range(4), num_workers=1))) == 4
    assert len(list(made_in_order(batch, range(4), num_workers=0))) == 4
    with pytest.raises(UserError, match=r"take fewer workers \(--workers=0 needs"):
        next(made_in_order(batch, range(9), num_workers=2, setting="--workers"))


def test_shared_memory_without_a_limit_or_elsewhere_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", statvfs(0, blocks=0))
    assert len(list(made_in_order(batch, range(2), num_workers=1))) == 2
    monkeypatch.setattr(os, "statvfs", statvfs(0))
    monkeypatch.setattr(loading, "_SHARED_MEMORY", Path("/no such folder"))
    assert len(list(made_in_order(batch, range(2), num_workers=1))) == 2


def random_batch(number: int) -> VLMBatch:
    numbers = torch.Generator().manual_seed(number)
    ids = torch.randint(99, (4, 100), generator=numbers)
    features = torch.randn(4, 1, 16, 8, generator=numbers)
    pixels = torch.randint(256, (4, 1, 3, 8, 8), generator=numbers, dtype=torch.uint8).transpose(3, 4)
    skipped = [BadSample("b", "s", "no image", number)]
    return VLMBatch(
        ids, ids > 3, ids[:, ::2], ids[:, 0], pixels, features.half(), keys=["a", "b"], skipped=skipped, position=number
    )


def test_through_pipes_batches_are_equal_and_no_shared_memory_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def used(*_: Any) -> None:
        raise RuntimeError("unable to allocate shared memory")

    for name in ("_share_fd_cpu_", "_share_filename_cpu_", "_new_using_fd_cpu", "_new_using_filename_cpu"):
        monkeypatch.setattr(torch.UntypedStorage, name, used)  # also in the workers, which are forks
    monkeypatch.setattr(os, "statvfs", statvfs(0))
    with pytest.raises(UserError, match=r"data\.worker_transport=pipe"):
        list(made_in_order(random_batch, range(5), num_workers=2))
    piped = list(made_in_order(random_batch, range(5), num_workers=2, transport="pipe"))
    for one, other in zip(map(random_batch, range(5)), piped, strict=True):
        assert (one.keys, one.skipped, one.position) == (other.keys, other.skipped, other.position)
        assert list(one.model_inputs()) == list(other.model_inputs())
        for mine, theirs in zip(one.model_inputs().values(), other.model_inputs().values(), strict=True):
            assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
            assert mine.contiguous().numpy().tobytes() == theirs.contiguous().numpy().tobytes()


@pytest.mark.usefixtures("no_workers_left")
def test_a_mistake_comes_through_a_pipe_as_it_is() -> None:
    def mistaken(number: int) -> Tensor:
        if in_worker_2(number):
            raise UserError("the cache /x cannot be written")
        return make(number)

    with pytest.raises(UserError, match=r"^the cache /x cannot be written$"):
        list(made_in_order(mistaken, range(9), num_workers=2, transport="pipe"))


def _with_little_shared_memory(answer: Any, sizes: list[int], transport: Transport) -> None:
    """What happens to items of so many kB in a mount namespace with 256 kB of /dev/shm."""
    clone_new_namespace = 0x20000
    if ctypes.CDLL(None).unshare(clone_new_namespace):
        answer.send("not allowed")
        return
    for mount in (["--make-rprivate", "/"], ["-t", "tmpfs", "-o", "size=256k", "tmpfs", "/dev/shm"]):
        if subprocess.run(["mount", *mount], check=False, stderr=subprocess.DEVNULL).returncode:
            answer.send("not allowed")
            return
    try:
        items = made_in_order(
            lambda number: torch.zeros(sizes[number], 1000), range(len(sizes)), num_workers=1, transport=transport
        )
        answer.send([len(item) for item in items])
    except UserError as error:
        answer.send(str(error))


@pytest.mark.skipif(sys.platform != "linux", reason="shared memory lies elsewhere")
@pytest.mark.parametrize(
    ("sizes", "transport", "expected"),
    [
        ([10] * 9, "shared_memory", [10] * 9),
        ([400] * 9, "pipe", [400] * 9),
        ([40] * 9, "shared_memory", "/dev/shm has 0.25 MiB free, and with 1 workers it holds 3 batches of 0.16 MiB: "),
        (
            [10, 10, 99, 10],
            "shared_memory",
            "a worker could not hand over what it had made (unable to allocate",
        ),
    ],
)
def test_a_small_shared_memory_is_enough_or_is_named(sizes: list[int], transport: Transport, expected: Any) -> None:
    here, there = FORK.Pipe()
    process = FORK.Process(target=_with_little_shared_memory, args=(there, sizes, transport))
    process.start()
    assert here.poll(30)
    told = here.recv()
    process.join(30)
    if told == "not allowed":
        pytest.skip("mounting is not allowed here")
    assert told == expected if isinstance(expected, list) else told.startswith(expected) and told.endswith(ADVICE)


@pytest.mark.usefixtures("no_workers_left")
@pytest.mark.parametrize(
    ("death", "message"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), r"was killed: perhaps .* so many workers \(data.num_workers\)$"),
        (lambda: os.kill(os.getpid(), signal.SIGBUS), r"died, as /dev/shm is full: take fewer workers \(data.num_w"),
        (lambda: os._exit(3), r"a worker that makes batches died \(it may have said why\); data\.num_workers=0 shows"),
    ],
)
def test_a_worker_that_dies_ends_the_loader_with_its_own_message(death: Callable[[], None], message: str) -> None:
    def deadly(number: int) -> Tensor:
        if in_worker_2(number):
            death()
        return make(number)

    with pytest.raises(LoaderError, match=message) as told:
        list(made_in_order(deadly, range(9), num_workers=1))
    assert "\n" not in str(told.value)


@pytest.mark.usefixtures("no_workers_left")
def test_a_death_of_which_no_signal_tells_is_noticed_all_the_same() -> None:
    """Lightning puts back other handlers of signals when a training ends."""

    def deadly(number: int) -> Tensor:
        if in_worker_2(number):
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGKILL)
        return make(number)

    items = made_in_order(deadly, range(9), num_workers=1)
    next(items)
    heard = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        with pytest.raises(LoaderError, match="a worker that makes batches was killed"):
            list(items)
    finally:
        signal.signal(signal.SIGCHLD, heard)


class Unwritable(str):
    """Lost in the thread that writes it for the other process, as a batch for which there is no room."""

    def __reduce__(self) -> Any:
        raise OSError("no way to write it")


def lost(number: int) -> str:
    return Unwritable("x") if in_worker_2(number) else "x"


def hanging(number: int) -> str:
    if in_worker_2(number):
        time.sleep(1.5)
    return "x"


@pytest.mark.usefixtures("no_workers_left")
@pytest.mark.parametrize("of", [lost, hanging])
def test_what_never_comes_is_not_waited_for_for_ever(of: Callable[[int], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_LONGEST_WAIT", 1)
    items = made_in_order(of, range(9), num_workers=1)
    assert [next(items), next(items)] == ["x", "x"]
    with pytest.raises(LoaderError, match=r"^no batch came for half an hour: a worker hangs, or its batch was lost; "):
        next(items)


@pytest.mark.usefixtures("no_workers_left")
def test_a_slow_worker_is_waited_for() -> None:
    assert list(made_in_order(hanging, range(4), num_workers=1)) == ["x"] * 4


@pytest.mark.usefixtures("no_workers_left")
def test_a_mistake_of_the_user_that_a_worker_finds_is_reported_as_it_is() -> None:
    def mistaken(number: int) -> Tensor:
        if in_worker_2(number):
            raise UserError("the cache /x cannot be written (No space left on device)")
        return make(number)

    with pytest.raises(UserError, match=r"^the cache /x cannot be written \(No space left on device\)$"):
        list(made_in_order(mistaken, range(9), num_workers=2))


@pytest.mark.usefixtures("no_workers_left")
def test_other_errors_keep_their_type_and_say_where_they_were() -> None:
    def broken(number: int) -> Tensor:
        if in_worker_2(number):
            raise ZeroDivisionError("here")
        return make(number)

    with pytest.raises(ZeroDivisionError, match="in DataLoader worker process"):
        list(made_in_order(broken, range(9), num_workers=1))
    with pytest.raises(RuntimeError, match="^another$"), loader_failures_reported():
        raise RuntimeError("another")
