"""Answer many requests together: those of about the same length in one padded batch, greedily.

Requests are read in groups. Each group is sorted by frames and tokens, longest first, so that batches contain little
padding and memory runs out early if it does. A batch gives the answers that its requests would get alone, up to
rounding: the arithmetic is the same, on rows that are padded on the left. A long video is left to a `Session`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from llava_mini.errors import UserError, renamed
from llava_mini.inference.long_context import check_length
from llava_mini.inference.media_source import Media
from llava_mini.inference.prompts import check_question, has_bos, prompt_of, user_message
from llava_mini.inference.requests import Answers, Record, Request
from llava_mini.inference.session import Session
from llava_mini.media.named import check_file, frames_of, open_image, open_video
from llava_mini.media.video import VideoReader
from llava_mini.models import LlavaMiniForConditionalGeneration, LlavaMiniProcessor
from llava_mini.out_of_memory import oom_as_user_error
from llava_mini.token_layout import SINGLE_VIEW
from llava_mini.views import NUM_VIEWS

MOST_FRAMES = 512  # whose pixels are in memory at once; a request with more is read as a stream, by itself
_GROUP = 1024  # requests that are sorted together

_Frames = list[NDArray[np.uint8]]


@dataclass(frozen=True)
class Prepared:
    """A request whose files exist, with its prompt, of one placeholder for every image and video.

    `frames` counts views of images and frames of videos; `tokens` are those of the prompt with all placeholders.
    """

    request: Request
    prompt: str
    videos: tuple[VideoReader, ...]
    frames: int
    tokens: int


_Read = tuple[Prepared, list[Image.Image], list[_Frames]]


@dataclass(frozen=True)
class Batcher:
    """Answer requests of any kind in batches.

    The model is in evaluation mode, its processor has a chat template. Of a video, `fps` frames a second are read, or
    `count` in all. `kv_bits` are those of the KV cache for a request left to a `Session`. `names` are those that the
    user knows parameters by, for the errors in records.
    """

    model: LlavaMiniForConditionalGeneration
    processor: LlavaMiniProcessor
    batch_size: int = 8
    max_new_tokens: int = 256
    fps: float = 1.0
    count: int | None = None
    kv_bits: int | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    def run(
        self, requests: Sequence[Request], answers: Answers, on_records: Callable[[int], None] = lambda _: None
    ) -> None:
        """Answer the requests that have no record in `answers` yet; `on_records` gets the number of added records."""
        waiting = (request for request in requests if request not in answers)
        while group := list(islice(waiting, _GROUP)):
            for records in self._group(group):
                answers.add(records)
                on_records(len(records))

    def _group(self, group: Iterable[Request]) -> Iterator[list[Record]]:
        prepared, refused = [], []
        for request in group:
            try:
                prepared.append(self.prepare(request))
            except UserError as error:
                refused.append(self._failed(request, error))
        yield refused
        prepared.sort(key=lambda one: (one.frames, one.tokens), reverse=True)
        for batch in _batches(prepared, self.batch_size):
            yield self._records(batch)

    @oom_as_user_error()
    def prepare(self, request: Request) -> Prepared:
        """Check a request as far as possible without decoding, and return it with its prompt.

        Raises:
            UserError: the request cannot be answered.
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
        placeholders = self.processor.layout.sample([views] * len(request.images) + [SINGLE_VIEW] * shown)
        check_length(self.model.config, len(text), self.max_new_tokens, placeholders)
        return Prepared(request, prompt, videos, len(request.images) * views + shown, len(text) + placeholders)

    def _records(self, batch: Sequence[Prepared]) -> list[Record]:
        """Return a record of every request; if the files of one are damaged, the others are still answered."""
        if batch[0].frames > MOST_FRAMES:
            return [self._streamed(batch[0])]
        records, readable = [], []
        for one in batch:
            try:
                readable.append(_read(one))
            except UserError as error:
                records.append(self._failed(one.request, error))
        return records + self._answered(readable)

    def _answered(self, batch: list[_Read]) -> list[Record]:
        """Return the records of a batch; if it cannot be answered as a whole, halve it down to the failing request."""
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
                return [self._failed(batch[0][0].request, error)]
        else:
            return [_answer(one, text, one.videos) for (one, _, _), text in zip(batch, found, strict=True)]
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        half = len(batch) // 2
        return self._answered(batch[:half]) + self._answered(batch[half:])

    def _streamed(self, one: Prepared) -> Record:
        """Answer a request with more frames than are in memory at once."""
        session = Session(self.model, self.processor, kv_bits=self.kv_bits)
        try:
            with oom_as_user_error():
                for path in one.request.images:
                    session.add_media(open_image(path))
                for video in one.videos:
                    session.add_media(video.path, fps=self.fps, count=self.count)
                text = session.ask(one.request.question, max_new_tokens=self.max_new_tokens)
        except UserError as error:
            return self._failed(one.request, error)
        return _answer(one, text, session.media[len(one.request.images) :])

    def _failed(self, request: Request, error: UserError) -> Record:
        return request.record(error=" ".join(str(renamed(error, self.names)).split()))

    @oom_as_user_error()
    @torch.no_grad()
    def generate(self, prompts: list[str], images: list[Image.Image], videos: list[_Frames]) -> list[str]:
        """Return the answers to prompts, whose images and videos are in the order of their placeholders.

        Raises:
            UserError: an image is too large for its views, or the model is out of memory.
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


@oom_as_user_error()
def _read(one: Prepared) -> _Read:
    """Decode the images and videos of a request."""
    images = [open_image(path) for path in one.request.images]
    return one, images, [list(frames_of(video)) for video in one.videos]


def _batches(prepared: Iterable[Prepared], size: int) -> Iterator[list[Prepared]]:
    """Yield batches in order: at most `size` requests and, unless one request has more, `MOST_FRAMES` frames each."""
    batch: list[Prepared] = []
    for one in prepared:
        if batch and (len(batch) == size or sum(each.frames for each in batch) + one.frames > MOST_FRAMES):
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def _answer(one: Prepared, text: str, videos: Sequence[VideoReader | Media]) -> Record:
    record = one.request.record(answer=text)
    read = zip(one.request.videos, videos, strict=True)
    if notes := [f"{path}: {video.stopped}" for path, video in read if video.stopped]:
        record["note"] = "; ".join(notes)
    return record
