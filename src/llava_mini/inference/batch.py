"""Many requests answered together: those of about the same length in one padded batch, greedily.

Requests are taken in groups, each sorted by frames and tokens, longest first, so that batches hold little padding and
memory runs out early if it does. A batch gives the answers that its requests would have got alone, up to rounding: it
is the same arithmetic on rows that are padded on their left. A long video is left to a `Session`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from llava_mini.errors import UserError
from llava_mini.hardware import is_out_of_memory, reason_of
from llava_mini.inference.long_context import check_length
from llava_mini.inference.media_source import Media
from llava_mini.inference.prompts import check_question, has_bos, prompt_of, user_message
from llava_mini.inference.requests import Answers, Record, Request
from llava_mini.inference.session import Session
from llava_mini.media.named import VideoSource, check_file, open_image, open_video
from llava_mini.models import LlavaMiniForConditionalGeneration, LlavaMiniProcessor
from llava_mini.views import NUM_VIEWS

MOST_FRAMES = 512  # whose pixels are held at once; a request with more is read as a stream, by itself
_GROUP = 1024  # requests that are sorted at once

_Frames = list[NDArray[np.uint8]]


@dataclass(frozen=True)
class Prepared:
    """A request whose files are there, with its prompt.

    Attributes:
        request: As it was read.
        prompt: Text with a mark for every image and video.
        videos: Opened, not decoded.
        frames: Views of images, and frames of videos.
        tokens: Of the prompt, with all placeholders.
    """

    request: Request
    prompt: str
    videos: tuple[VideoSource, ...]
    frames: int
    tokens: int


_Read = tuple[Prepared, list[Image.Image], list[_Frames]]


@contextmanager
def _oom_as_sample_error() -> Iterator[None]:
    """Make want of memory, whoever meets it, a mistake of the request: another one may need less."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch's own error on a GPU is a RuntimeError too
        if not is_out_of_memory(error):
            raise
        raise UserError(f"out of memory ({reason_of(error)})") from error


@dataclass(frozen=True)
class Batcher:
    """Answers requests of any kind.

    Attributes:
        model: In evaluation mode.
        processor: The model's, with a chat template.
        batch_size: Requests in a batch at most.
        max_new_tokens: Of an answer at most.
        fps: Frames that are shown of a second of video.
        count: In place of `fps` so many frames of every video.
        kv_bits: Of the language model's cache where a request is left to a `Session`; None: the model's type.
    """

    model: LlavaMiniForConditionalGeneration
    processor: LlavaMiniProcessor
    batch_size: int = 8
    max_new_tokens: int = 256
    fps: float = 1.0
    count: int | None = None
    kv_bits: int | None = None

    def run(self, requests: Sequence[Request], answers: Answers, told: Callable[[int], None] = lambda _: None) -> None:
        """Answer what is not answered yet.

        Args:
            requests: All of them.
            answers: Where records go as soon as they are there.
            told: Called with the number of records that were added.
        """
        waiting = (request for request in requests if request not in answers)
        while group := list(islice(waiting, _GROUP)):
            for records in self._group(group):
                answers.add(records)
                told(len(records))

    def _group(self, group: Iterable[Request]) -> Iterator[list[Record]]:
        prepared, refused = [], []
        for request in group:
            try:
                prepared.append(self.prepare(request))
            except UserError as error:
                refused.append(_failed(request, error))
        yield refused
        prepared.sort(key=lambda one: (one.frames, one.tokens), reverse=True)
        for batch in _batches(prepared, self.batch_size):
            yield self._records(batch)

    @_oom_as_sample_error()
    def prepare(self, request: Request) -> Prepared:
        """Check a request as far as can be without decoding.

        Raises:
            UserError: it cannot be answered.
        """
        if request.refused:
            raise UserError(request.refused)
        question = check_question(request.question, self.processor)
        for path in request.images:
            check_file(path)
        videos = tuple(open_video(path, fps=self.fps, count=self.count) for path in request.videos)
        prompt = prompt_of(
            self.processor, [user_message(question, ["image"] * len(request.images) + ["video"] * len(videos))]
        )
        views, shown = NUM_VIEWS[self.processor.views], sum(video.expected for video in videos)
        text = self.processor.tokenizer(prompt, add_special_tokens=not has_bos(self.processor, prompt))["input_ids"]
        placeholders = len(request.images) * self.processor.tokens_of(views) + shown * self.processor.tokens_of(1)
        check_length(self.model.config, len(text), self.max_new_tokens, placeholders)
        return Prepared(request, prompt, videos, len(request.images) * views + shown, len(text) + placeholders)

    def _records(self, batch: Sequence[Prepared]) -> list[Record]:
        """A record of every request; one whose files are damaged leaves the others their answers."""
        if batch[0].frames > MOST_FRAMES:
            return [self._streamed(batch[0])]
        records, readable = [], []
        for one in batch:
            try:
                readable.append(_read(one))
            except UserError as error:
                records.append(_failed(one.request, error))
        return records + self._answered(readable)

    def _answered(self, batch: list[_Read]) -> list[Record]:
        """Answers; a batch that cannot be answered as a whole is halved, down to the request that is to blame."""
        if not batch:
            return []
        try:
            found = self.generate(
                [one.prompt for one, _, _ in batch],
                [image for _, images, _ in batch for image in images],
                [video for _, _, videos in batch for video in videos],
            )
        except UserError as error:
            if len(batch) == 1:
                return [_failed(batch[0][0].request, error)]
        else:
            return [_answer(one, text, one.videos) for (one, _, _), text in zip(batch, found, strict=True)]
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        half = len(batch) // 2
        return self._answered(batch[:half]) + self._answered(batch[half:])

    def _streamed(self, one: Prepared) -> Record:
        """A request with more frames than are held at once."""
        session = Session(self.model, self.processor, kv_bits=self.kv_bits)
        try:
            with _oom_as_sample_error():
                for path in one.request.images:
                    session.add_media(open_image(path))
                for video in one.videos:
                    session.add_media(video.path, fps=self.fps, count=self.count)
                text = session.ask(one.request.question, max_new_tokens=self.max_new_tokens)
        except UserError as error:
            return _failed(one.request, error)
        return _answer(one, text, session.media[len(one.request.images) :])

    @_oom_as_sample_error()
    @torch.no_grad()
    def generate(self, prompts: list[str], images: list[Image.Image], videos: list[_Frames]) -> list[str]:
        """Answers to prompts, with their images and videos in the order of their marks.

        Raises:
            UserError: an image is too large for its views, or memory is wanting.
        """
        inputs = self.processor(
            text=prompts,
            images=images or None,
            videos=videos or None,
            padding_side="left",
            add_special_tokens=not has_bos(self.processor, prompts[0]),
        ).to(self.model.device, self.model.dtype)
        ids = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False, num_beams=1)
        new = ids[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.batch_decode(new, skip_special_tokens=True)]


@_oom_as_sample_error()
def _read(one: Prepared) -> _Read:
    """What a request shows, decoded."""
    images = [open_image(path) for path in one.request.images]
    return one, images, [list(video.frames()) for video in one.videos]


def _batches(prepared: Iterable[Prepared], size: int) -> Iterator[list[Prepared]]:
    """In their order, so many at a time, and no more frames at a time than `MOST_FRAMES`."""
    batch: list[Prepared] = []
    for one in prepared:
        if batch and (len(batch) == size or sum(each.frames for each in batch) + one.frames > MOST_FRAMES):
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def _answer(one: Prepared, text: str, videos: Sequence[VideoSource | Media]) -> Record:
    record = one.request.record(answer=text)
    read = zip(one.request.videos, videos, strict=True)
    if notes := [f"{path}: {video.stopped}" for path, video in read if video.stopped]:
        record["note"] = "; ".join(notes)
    return record


def _failed(request: Request, error: Exception) -> Record:
    return request.record(error=" ".join(str(error).split()))
