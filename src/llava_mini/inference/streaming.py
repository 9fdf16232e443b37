"""An answer piece by piece while it is made: transformers' streamer, read here and fed from a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, TextIteratorStreamer

from llava_mini.errors import UserError


class SessionLock:
    """One thing at a time: frames and cache of a session are of the answer that is being made. For `with`, too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Raises UserError while something is being done."""
        if not self._lock.acquire(blocking=False):
            raise UserError("the session is busy with an answer: read its stream to the end, or close it and wait")

    def end(self) -> None:
        """Also from another thread than the one that began."""
        self._lock.release()

    def __enter__(self) -> None:
        self.begin()

    def __exit__(self, *_: object) -> None:
        self.end()


class StopWhenSet(StoppingCriteria):
    """Ends an answer when an event is set."""

    def __init__(self, event: threading.Event):
        self.event = event

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self.event.is_set(), dtype=torch.bool, device=input_ids.device)


def pieces(
    tokenizer: Any, answer: Callable[[TextIteratorStreamer, StopWhenSet], object], ended: Callable[[], None]
) -> Generator[str, None, None]:
    """The text of an answer as it is made; when it is left early, the answer ends where it is.

    Args:
        tokenizer: Of the words.
        answer: Makes it, in a thread of its own; what it raises is raised here.
        ended: Called once nothing is made any more, which is later than the reader has gone where the reader does not
            wait for it (a second Ctrl-C).
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
