"""Session: look at images and videos once, ask about them any number of times.

What was looked at goes through vision tower, compressor and the text-independent part of pre-fusion once
(`FrameCache`). A question then costs its own tokens in pre-fusion, for every frame, and what of the prompt the language
model has not read yet: its cache is cut back to the beginning that the new prompt shares with the last one.

Answers are those of `model.generate` on the whole prompt (tested). In a conversation earlier answers are hidden from
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

from llava_mini.errors import UserError
from llava_mini.hardware import free_bytes
from llava_mini.inference.answering import embedded, generation_choices
from llava_mini.inference.cache import SessionCache
from llava_mini.inference.capacity import check_capacity, check_prompt
from llava_mini.inference.conversation import Prompt, Turn, build_prompt, shared
from llava_mini.inference.frame_cache import FrameCache, FrameCacheConfig
from llava_mini.inference.long_context import check_length, prefill
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
from llava_mini.inference.prompts import check_question
from llava_mini.inference.streaming import SessionLock, StopWhenSet, pieces
from llava_mini.models import LlavaMiniForConditionalGeneration, LlavaMiniProcessor
from llava_mini.models.frame_batch import frames_at_once
from llava_mini.models.vision_tower import SINGLE_VIEW

_KV_SHARE = 0.25  # of the free memory, for pre-fusion's keys and values
_PREFILL = 512  # tokens that the language model reads at once; more are no faster and take more memory


class Session:
    """Images and videos that were looked at, and a conversation about them.

    Args:
        model: In evaluation mode; it and its processor as `inference.loading.load` gives them.
        processor: The model's, with a chat template.
        keep: How frames are kept for later questions; default: keys and values as far as memory allows.
        kv_bits: Bits of the language model's cache of what it has read: 8 or 4; None: the model's type.
        frame_batch: Frames that are encoded together; None: as memory allows.

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
            raise UserError("the processor has no chat template, so nobody knows how this model is asked")
        if frame_batch is not None and frame_batch < 1:
            raise UserError(f"frame_batch={frame_batch}: allowed are 1 and above, and None")
        self.model, self.processor, self.frame_batch = model, processor, frame_batch
        keep = keep or FrameCacheConfig()
        budget = int(free_bytes(model.device) * _KV_SHARE) if keep.kv_budget is None else keep.kv_budget
        self.store = FrameCache(model, keep, budget)
        self.media: list[Media] = []
        self.cache = SessionCache(model.config, kv_bits)
        self._turns: list[Turn] = []
        self._read: list[tuple[int, bool]] = []  # of every token in the cache: id, and whether pre-fusion saw it
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
            source: The path of an image or a video; a PIL image or an array [H, W, 3]; frames of a video as a list, an
                iterator or an array [F, H, W, 3].
            fps: Frames for a second of a video that is read from a file.
            count: In place of `fps` so many frames at equal distances.
            reserve: Tokens to leave free for the longest question and its answer (`conversation.question_tokens`).
            progress: True for a bar on standard error, or what is called after every micro-batch.

        Returns:
            What was added; `stopped` says why a damaged video ended early.

        Raises:
            UserError: it cannot be read, or its frames do not fit into memory. Nothing of it is kept then.
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
        found = Media(opened.kind, frames, opened.seconds, opened.stopped())
        self._seen(found)
        return found

    @torch.no_grad()
    def push(self, frame: Any) -> Media:
        """One more frame of a live video; the first one, and the first after `add_media`, begins a video.

        Args:
            frame: A PIL image, or an array [H, W, 3] or of another form that the processor takes.

        Returns:
            The video so far.
        """
        pixels_V3HW = pixels_of_frame(frame, "push", self.processor, is_video=True)
        begins = self._live is None
        item = len(self.media) if self._live is None else self._live
        with self._busy:
            self._add(item, pixels_V3HW[None])
        if begins:
            self._seen(Media("video", 1, None, None))
            self._live = item
        else:
            self.media[item] = Media("video", self.media[item].frames + 1, None, None)
            self._forget_read()
        return self.media[item]

    def ask(self, question: str, *, follow_up: bool = False, max_new_tokens: int = 256, **generation: Any) -> str:
        """The answer to a question about everything that was looked at.

        Args:
            question: Text.
            follow_up: Whether it goes on with the conversation; else it stands alone behind what was looked at, and a
                later follow-up goes on from it.
            max_new_tokens: The longest answer.
            **generation: As `generate` of transformers takes it: do_sample, temperature, top_p. Default: greedy.

        Raises:
            UserError: the question is empty or has special tokens, or prompt and answer are longer than the language
                model reads or memory holds.
        """
        with self._busy:
            prompt = self._prompt(question, follow_up, max_new_tokens)
            return self._answer(prompt, max_new_tokens, generation)

    def stream(
        self, question: str, *, follow_up: bool = False, max_new_tokens: int = 256, **generation: Any
    ) -> Generator[str, None, None]:
        """As `ask`, piece by piece; when it is left early, the answer ends where it is and is kept so."""
        check_question(question, self.processor)

        def made() -> Generator[str, None, None]:
            self._busy.begin()  # from the first piece that is asked for until nothing is made any more
            try:
                prompt = self._prompt(question, follow_up, max_new_tokens)
            except BaseException:
                self._busy.end()
                raise
            answer = partial(self._answer, prompt, max_new_tokens, generation)
            yield from pieces(self.processor.tokenizer, answer, self._busy.end)

        return made()

    def forget(self) -> None:
        """Forget questions and answers; what was looked at stays."""
        with self._busy:
            self._turns = []

    def save(self, path: Path | str) -> None:
        """Write what was looked at, to be asked again without it; questions and answers are not written.

        Raises:
            UserError: the file cannot be written, or is there and no session.
        """
        from llava_mini.inference.session_file import save

        save(self, Path(path))

    @classmethod
    def load(
        cls, path: Path | str, model: LlavaMiniForConditionalGeneration, processor: LlavaMiniProcessor, **options: Any
    ) -> Session:
        """A session with what `save` wrote; `options` are those of the class.

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

    def _seen(self, look: Media) -> None:
        self.media.append(look)
        self._forget_read()

    def _forget_read(self) -> None:
        """Another frame changes the fused text, also of tokens before it; without pre-fusion it changes nothing."""
        if self.model.config.num_fusion_layers:
            self._read = []

    def _frames_at_once(self, views: int) -> int:
        return self.frame_batch or frames_at_once(self.model.config, views, self.model.dtype, self.model.device)

    def _prompt(self, question: str, follow_up: bool, max_new_tokens: int) -> Prompt:
        question = check_question(question, self.processor)
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens={max_new_tokens}: allowed are 1 and above")
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
        self._read = []  # until the answer is whole, nothing in the cache is relied on
        if begin:
            self.cache.cut(begin)
        else:  # also behind an answer that was interrupted, whose layers hold different numbers of tokens
            self.cache = SessionCache(self.model.config, self.cache.bits)
        self.cache.freeze()
        rest_TD = embedded(self.model, self.store, prompt, begin)
        last = (len(rest_TD) - 1) % _PREFILL + 1
        prefill(language_model, rest_TD[None, :-last], self.cache, _PREFILL)
        # `generate` reads what the cache does not hold yet of embeddings of the whole prompt.
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
