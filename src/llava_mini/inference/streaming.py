"""An answer piece by piece while it is generated: a thread feeds transformers' streamer, which is read here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, TextIteratorStreamer

from llava_mini.errors import UserError


class SessionLock:
    """Lock of a session, also for `with`: while an answer is generated, nothing else uses its frames and cache."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Acquire the lock; raise UserError while the session is busy."""
        if not self._lock.acquire(blocking=False):
            raise UserError("the session is busy with an answer: read its stream to the end, or close it and wait")

    def end(self) -> None:
        """Release the lock, also from another thread than the one that acquired it."""
        self._lock.release()

    def __enter__(self) -> None:
        self.begin()

    def __exit__(self, *_: object) -> None:
        self.end()


class StopWhenSet(StoppingCriteria):
    """Stopping criterion that ends an answer when an event is set."""

    def __init__(self, event: threading.Event):
        self.event = event

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self.event.is_set(), dtype=torch.bool, device=input_ids.device)


def pieces(
    tokenizer: Any, answer: Callable[[TextIteratorStreamer, StopWhenSet], object], ended: Callable[[], None]
) -> Generator[str, None, None]:
    """Yield the text of an answer while it is generated; if the reader stops early, the answer ends there.

    Args:
        tokenizer: Tokenizer that decodes the answer.
        answer: Function that generates the answer, in its own thread; what it raises is raised here.
        ended: Function that is called once nothing is generated any more. If the reader does not wait for that (a
            second Ctrl-C), it is called after the reader has gone.
    """
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=False, skip_special_tokens=True)
    stop, failed = threading.Event(), list[BaseException]()

    def work() -> None:
        try:
            answer(streamer, StopWhenSet(stop))
        except BaseException as error:  # noqa: BLE001 (raised again where the answer is read)
            failed.append(error)
            streamer.end()
        finally:
            ended()

    thread = threading.Thread(target=work, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        ended()
        raise
    try:
        yield from streamer
    finally:
        stop.set()
        thread.join()
    if failed:
        raise failed[0]
