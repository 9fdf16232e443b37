"""An answer in a session: the embeddings of its prompt, how tokens are chosen, and how it is read while it is made.

Shapes: T tokens of a prompt, S of them visible to pre-fusion, D width of the language model.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, TextIteratorStreamer

from llava_mini.errors import UserError, refused
from llava_mini.inference.frame_cache import FrameCache
from llava_mini.inference.prompts import Prompt
from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.models.generation import suppressed_tokens


def embedded(model: LlavaMiniForConditionalGeneration, store: FrameCache, prompt: Prompt, begin: int) -> Tensor:
    """Return embeddings of the prompt from `begin` on [T - begin, D]: compressed tokens, fused text, plain answers."""
    device = model.device
    ids = torch.tensor(prompt.ids, device=device)
    visible = torch.tensor(prompt.visible, device=device)
    placeholder = ids == model.config.image_token_id
    text_SD = model.embed(ids[visible][None], placeholder[visible][None])[0]
    fused_SD = store.read(text_SD) if bool(visible[begin:].any()) else text_SD
    part = slice(begin, None)
    embedded_TD = model.embed(ids[None, part], placeholder[None, part])[0].clone()
    first = int(visible[:begin].sum())
    embedded_TD[visible[part]] = fused_SD[first:].to(embedded_TD.dtype)
    if bool(placeholder[part].any()):
        tokens = store.tokens()[int(placeholder[:begin].sum()) :]
        embedded_TD[placeholder[part]] = tokens.to(embedded_TD.dtype)
    return embedded_TD


def generation_choices(
    model: LlavaMiniForConditionalGeneration, max_new_tokens: int, generation: dict[str, Any]
) -> tuple[GenerationConfig, dict[str, Any]]:
    """Return the model's generation config changed by a question's options, greedy by default; and unused options.

    Raises:
        UserError: the options request several answers at once.
    """
    config = copy.deepcopy(model.generation_config)
    one = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1}
    if several := [name for name in ("num_beams", "num_return_sequences") if generation.get(name, 1) != 1]:
        raise refused(several[0], generation[several[0]], "a session makes one answer at a time", only="1")
    rest = config.update(**{**one, "max_new_tokens": max_new_tokens, **generation})
    config.suppress_tokens = suppressed_tokens(model.config, config, None)
    return config, rest


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

    `answer` generates it in a thread of its own; what it raises is raised here. `ended` is called once nothing is
    generated any more: if the reader does not wait for that (a second Ctrl-C), after the reader has gone.
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
