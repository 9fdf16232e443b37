"""Session: encode images and videos once, ask about them any number of times.

Images and videos go through vision tower, compressor and the text-independent part of pre-fusion once (`FrameCache`). A
question then costs its own tokens in pre-fusion, for every frame, and the part of the prompt that the language model
has not read yet: its KV cache is cut back to the beginning that the new prompt shares with the last one.

Answers are those of `model.generate` on the whole prompt (tested). In a conversation, earlier answers are hidden from
pre-fusion, as in training.

Shapes: T tokens of a prompt, S of them visible to pre-fusion, D width of the language model.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteriaList, TextIteratorStreamer

from llava_mini.errors import UserError, refused
from llava_mini.hardware import free_bytes
from llava_mini.inference.answering import SessionLock, StopWhenSet, embedded, generation_choices, pieces
from llava_mini.inference.cache import SessionCache
from llava_mini.inference.frame_cache import FrameCache, FrameCacheConfig
from llava_mini.inference.long_context import check_capacity, check_length, check_prompt, prefill
from llava_mini.inference.media_source import (
    Media,
    Opened,
    Progress,
    Source,
    open_source,
    pixels_of,
    pixels_of_frame,
    shown,
)
from llava_mini.inference.prompts import Prompt, Turn, build_prompt, check_question, shared
from llava_mini.models import LlavaMiniForConditionalGeneration, LlavaMiniProcessor
from llava_mini.models.frame_batch import frames_at_once
from llava_mini.token_layout import SINGLE_VIEW

_KV_SHARE = 0.25  # of the free memory, for pre-fusion's keys and values
_PREFILL = 512  # tokens that the language model reads at once; more are no faster and take more memory


class Session:
    """Encoded images and videos, and a conversation about them.

    Args:
        model: Model in evaluation mode; it and its processor as `inference.loading.load` returns them.
        processor: The model's processor, with a chat template.
        keep: How frames are stored for follow-up questions; default: keys and values as far as memory allows.
        kv_bits: Bits of the language model's KV cache: 8 or 4; None: the model's type.
        frame_batch: Number of frames that are encoded together; None: as memory allows.

    Raises:
        UserError: the processor has no chat template, or a value is not allowed.
    """

    def __init__(
        self,
        model: LlavaMiniForConditionalGeneration,
        processor: LlavaMiniProcessor,
        *,
        keep: FrameCacheConfig | None = None,
        kv_bits: int | None = None,
        frame_batch: int | None = None,
    ):
        if processor.chat_template is None:
            raise UserError("the processor has no chat template, so no question can be written", key="processor")
        if frame_batch is not None and frame_batch < 1:
            raise refused("frame_batch", frame_batch, allowed="1 and above, and None")
        self.model, self.processor, self.frame_batch = model, processor, frame_batch
        keep = keep or FrameCacheConfig()
        budget = int(free_bytes(model.device) * _KV_SHARE) if keep.kv_budget is None else keep.kv_budget
        self.store = FrameCache(model, keep, budget)
        self.media: list[Media] = []
        self.cache = SessionCache(model.config, kv_bits)
        self._turns: list[Turn] = []
        self._read: list[tuple[int, bool]] = []  # of every token in the cache: id, and whether pre-fusion read it
        self._live: int | None = None
        self._busy = SessionLock()

    @torch.no_grad()
    def add_media(
        self,
        source: Source,
        *,
        fps: float = 1.0,
        count: int | None = None,
        reserve: int = 0,
        progress: bool | Callable[[Progress], None] = False,
    ) -> Media:
        """Encode an image or a video; a video is read as a stream, a few frames in memory at a time.

        Args:
            source: Path of an image or a video; a PIL image or an array [H, W, 3]; frames of a video as a list, an
                iterator or an array [F, H, W, 3].
            fps: Number of frames per second of a video that is read from a file.
            count: Number of frames at equal distances, instead of `fps`.
            reserve: Number of tokens to leave free for the longest question and its answer
                (`prompts.question_tokens`).
            progress: True for a progress bar on standard error, or a function that is called after every batch of
                frames.

        Returns:
            Description of what was added; `stopped` says why a damaged video ended early.

        Raises:
            UserError: the source cannot be read, or its frames do not fit into memory. Nothing of it is stored then.
        """
        opened = open_source(source, fps=fps, count=count)
        if opened.expected and opened.kind == "video":
            check_capacity(self.store, self.cache, len(self.media), opened.expected, SINGLE_VIEW, reserve=reserve)
        with self._busy:
            return self._add_opened(opened, reserve, progress)

    def _add_opened(self, opened: Opened, reserve: int, progress: bool | Callable[[Progress], None]) -> Media:
        item, before = len(self.media), len(self.store.chunks)
        kv_bytes = self.store.kv_bytes
        self._live = None
        frames = 0
        try:
            with shown(progress, opened) as report:
                for pixels_FV3HW in pixels_of(opened, self.processor, self._frames_at_once):
                    self._add(item, pixels_FV3HW, reserve)
                    frames += len(pixels_FV3HW)
                    report(frames)
            if not frames:
                raise UserError(f"{opened.name}: a video without frames")
        except BaseException:
            del self.store.chunks[before:]
            self.store.kv_bytes = kv_bytes
            raise
        self.media.append(Media(opened.kind, frames, opened.seconds, opened.stopped()))
        self._forget_read()
        return self.media[-1]

    @torch.no_grad()
    def push(self, frame: Any) -> Media:
        """Add a frame to a live video, and return the description of the video so far.

        The first frame, and the first after `add_media`, begins a video. A frame is a PIL image, or an array [H, W, 3]
        or of another form that the processor takes.
        """
        pixels_V3HW = pixels_of_frame(frame, "push", self.processor, is_video=True)
        begins = self._live is None
        item = len(self.media) if self._live is None else self._live
        with self._busy:
            self._add(item, pixels_V3HW[None])
        if begins:
            self.media.append(Media("video", 1, None, None))
            self._live = item
        else:
            self.media[item] = Media("video", self.media[item].frames + 1, None, None)
        self._forget_read()
        return self.media[item]

    def ask(self, question: str, *, follow_up: bool = False, max_new_tokens: int = 256, **generation: Any) -> str:
        """Return the answer to a question about all encoded images and videos.

        Args:
            question: Text of the question.
            follow_up: Whether the question continues the conversation. If not, it is alone after the images and videos,
                and a later follow-up continues from it.
            max_new_tokens: Largest number of tokens of the answer.
            **generation: Options of transformers' `generate`: do_sample, temperature, top_p. Default: greedy.

        Raises:
            UserError: the question is empty or has special tokens, or prompt and answer are longer than the language
                model reads or memory allows.
        """
        with self._busy:
            prompt = self._prompt(question, follow_up, max_new_tokens)
            return self._answer(prompt, max_new_tokens, generation)

    def stream(
        self, question: str, *, follow_up: bool = False, max_new_tokens: int = 256, **generation: Any
    ) -> Generator[str, None, None]:
        """Yield the answer that `ask` returns, piece by piece; if it is closed early, the partial answer is kept."""
        check_question(question, self.processor)

        def made() -> Generator[str, None, None]:
            self._busy.begin()  # from the first requested piece until nothing is generated any more
            try:
                prompt = self._prompt(question, follow_up, max_new_tokens)
            except BaseException:
                self._busy.end()
                raise
            answer = partial(self._answer, prompt, max_new_tokens, generation)
            yield from pieces(self.processor.tokenizer, answer, self._busy.end)

        return made()

    def forget(self) -> None:
        """Forget questions and answers; encoded images and videos stay."""
        with self._busy:
            self._turns = []

    def save(self, path: Path | str) -> None:
        """Save the encoded images and videos, so that they need not be encoded again; not questions and answers.

        Raises:
            UserError: the file cannot be written, or exists and is no session.
        """
        from llava_mini.inference.session_file import save

        save(self, Path(path))

    @classmethod
    def load(
        cls, path: Path | str, model: LlavaMiniForConditionalGeneration, processor: LlavaMiniProcessor, **options: Any
    ) -> Session:
        """Return a session with what `save` wrote; `options` are the arguments of the class.

        Raises:
            UserError: the file cannot be read, or is of another model.
        """
        from llava_mini.inference.session_file import load

        session = cls(model, processor, **options)
        load(session, Path(path))
        return session

    def _add(self, item: int, pixels_FV3HW: Tensor, reserve: int = 0) -> None:
        check_capacity(self.store, self.cache, item, *pixels_FV3HW.shape[:2], reserve=reserve)
        pixels = pixels_FV3HW.to(self.model.device, self.model.dtype)
        self.store.add(item, self.model.encode(pixels), self._frames_at_once(pixels.shape[1]))

    def _forget_read(self) -> None:
        """Forget what was read: a new frame changes the fused text, also of earlier tokens, if there is pre-fusion."""
        if self.model.config.num_fusion_layers:
            self._read = []

    def _frames_at_once(self, views: int) -> int:
        return self.frame_batch or frames_at_once(self.model.config, views, self.model.dtype, self.model.device)

    def _prompt(self, question: str, follow_up: bool, max_new_tokens: int) -> Prompt:
        question = check_question(question, self.processor)
        if max_new_tokens < 1:
            raise refused("max_new_tokens", max_new_tokens, allowed="1 and above")
        earlier = self._turns if follow_up else []
        turns = [*earlier, Turn(len(self.media) - sum(turn.media for turn in earlier), question, None)]
        tokens = self.store.tokens_by_item()
        counts = [tokens[item] for item in range(len(self.media))]
        prompt = build_prompt(self.processor, turns, [look.kind for look in self.media], counts)
        shown = sum(counts)
        check_length(self.model.config, len(prompt.ids) - shown, max_new_tokens, shown)
        check_prompt(self.store, self.cache, len(prompt.ids) + max_new_tokens)
        return prompt

    @torch.no_grad()
    def _answer(
        self,
        prompt: Prompt,
        max_new_tokens: int,
        generation: dict[str, Any],
        streamer: TextIteratorStreamer | None = None,
        stop: StopWhenSet | None = None,
    ) -> str:
        language_model = self.model.language_model
        keys = list(zip(prompt.ids, prompt.visible, strict=True))
        begin = min(shared(self._read, keys), len(keys) - 1, self.cache.get_seq_length())
        self._read = []  # until the answer is complete, the contents of the cache are not used
        if begin:
            self.cache.cut(begin)
        else:  # also after an interrupted answer, whose layers contain different numbers of tokens
            self.cache = SessionCache(self.model.config, self.cache.bits)
        self.cache.freeze()
        rest_TD = embedded(self.model, self.store, prompt, begin)
        last = (len(rest_TD) - 1) % _PREFILL + 1
        prefill(language_model, rest_TD[None, :-last], self.cache, _PREFILL)
        # `generate` takes embeddings of the whole prompt, and reads those that are not in the cache yet.
        inputs_embeds = rest_TD.new_zeros(1, len(keys), rest_TD.shape[1])
        inputs_embeds[0, -last:] = rest_TD[-last:]
        config, rest = generation_choices(self.model, max_new_tokens, generation)
        ids = language_model.generate(
            inputs_embeds=inputs_embeds,
            attention_mask=torch.ones(inputs_embeds.shape[:2], dtype=torch.int64, device=inputs_embeds.device),
            past_key_values=self.cache,
            generation_config=config,
            streamer=streamer,
            stopping_criteria=StoppingCriteriaList([] if stop is None else [stop]),
            **rest,
        )[0].tolist()
        answer = str(self.processor.tokenizer.decode(ids, skip_special_tokens=True)).strip()
        self._turns = [*prompt.turns[:-1], Turn(prompt.turns[-1].media, prompt.turns[-1].question, answer)]
        said = [(token, False) for token in ids]
        self._read = [*keys, *said][: self.cache.get_seq_length()]
        return answer
