"""Converts LLaVA conversations to token ids and labels, as one sequence or as independent turns packed in a sequence.

Labels come from character offsets: a token is supervised when it overlaps an answer or the end token after it, so no
template needs to be tokenized piecewise. With K=2 compressed tokens (`i`), two questions `q` and answers `a`, packed:

    text        <s> <image> q1 q1 a1 </s>        <s> <image> q2 a2 </s>
    input_ids   s  i  i  q1 q1 a1 /s q2 a2 /s
    labels      -  -  -  -  -  a1 /s -  a2 /s
    turn_ids    0  0  0  1  1  1  1  2  2  2

Each turn is tokenized after the shared prefix as if it were alone, so it equals a separate sample.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llava_mini.batch import IGNORE
from llava_mini.data.text.conversation import Conversation, independent_conversations
from llava_mini.data.text.forms import IMAGE_PLACEHOLDER
from llava_mini.data.text.templates import ConversationTemplate, Rendered, Span, template_named
from llava_mini.errors import SampleError, UserError, refused
from llava_mini.token_layout import TokenLayout

Turns = Literal["conversation", "independent"]

_CACHED_TEXTS = 8192
_CACHED_LENGTH = 256  # characters; longer texts rarely repeat
_MARKS = re.compile(r"<\|[^<>|]+\|>|</s>")  # texts that must be one token wherever a template writes them


@dataclass(frozen=True)
class TokenizedSample:
    """Tokens of one sample: ids, labels and turn ids (None for one conversation), [T] int64 each.

    The first `num_turns` turns of the conversation are in it; `truncated` says that something was left out.
    """

    input_ids: Tensor
    labels: Tensor
    turn_ids: Tensor | None
    num_turns: int = 0
    truncated: bool = False

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def num_supervised(self) -> int:
        """Number of supervised tokens, which are those with a label."""
        return int((self.labels != IGNORE).sum())


@dataclass(frozen=True)
class _Encoded:
    """One text as T tokens: ids, labels, first character, and end (one after the last character), [T] each.

    `prefix` is the number of tokens that come before any turn of the text.
    """

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    prefix: int
    last_answer: Span


def tokenizer_in(folder: Path, template: str, image_tokens: int, max_length: int) -> ConversationTokenizer:
    """Return the tokenizer of a folder with a template of this package, for frames of so many tokens each.

    Raises:
        UserError: there is no such template, or no tokenizer in the folder that fits it.
    """
    chosen = template_named(template)
    if not (folder / "tokenizer_config.json").is_file():
        raise refused("tokenizer", folder, "no tokenizer_config.json there; name a tokenizer's folder")
    layout = TokenLayout(image_tokens, image_tokens)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    return ConversationTokenizer(tokenizer, chosen, layout=layout, max_length=max_length)


class ConversationTokenizer:
    """Converts conversations to `TokenizedSample`s.

    A conversation that is longer than `max_length` loses its last turns. When the turns that must stay (the first, and
    all with an image) are still too long, the last of them loses the end of its answer, and so its end token.

    The tokenizer is a fast one of transformers that knows the template's tokens. With turns "conversation", later turns
    attend to earlier ones; with "independent", every turn attends to the images and itself.

    Raises:
        UserError: An argument is impossible or does not fit the tokenizer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: ConversationTemplate,
        *,
        turns: Turns = "conversation",
        layout: TokenLayout,
        max_length: int = 4096,
    ) -> None:
        if turns not in ("conversation", "independent"):
            raise refused("turns", turns, allowed="conversation, independent")
        if max_length < 1:
            raise refused("max_length", max_length, allowed="1 or more")
        if not tokenizer.is_fast:
            why = f"tokenizer {tokenizer.name_or_path!r} gives no character offsets; a fast one is needed"
            raise UserError(why, key="tokenizer", value=tokenizer.name_or_path)
        for mark in (template.image_token, *_MARKS.findall(template.fixed_text)):
            if tokenizer(mark, add_special_tokens=False)["input_ids"] != [tokenizer.get_vocab().get(mark)]:
                why = f"tokenizer {tokenizer.name_or_path!r} has no token {mark!r}, which the template writes"
                raise UserError(why, key="tokenizer", value=tokenizer.name_or_path)
        self.tokenizer, self.template, self.turns = tokenizer, template, turns
        self.layout, self.max_length = layout, max_length
        self.image_token_id = tokenizer.get_vocab()[template.image_token]
        added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        reserved = {template.image_token, *tokenizer.all_special_tokens, *added}
        self._reserved = re.compile("|".join(re.escape(token) for token in sorted(reserved, key=len, reverse=True)))
        self._cache: dict[Rendered, _Encoded] = {}

    @property
    def pad_token_id(self) -> int:
        """Token id that pads a batch; the end token if the tokenizer has no padding token."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    def __call__(
        self, conversation: Conversation, frames_per_image: Sequence[int], num_views: int = 1
    ) -> TokenizedSample:
        """Tokenize a conversation, given the number of frames of each image (or video) and of views of each frame.

        Raises:
            SampleError: The placeholders do not match the images, a text contains a special token, or not even a
                shortened answer fits.
        """
        if conversation.num_images != len(frames_per_image):
            raise SampleError(f"{conversation.num_images} {IMAGE_PLACEHOLDER} for {len(frames_per_image)} images")
        self._check_texts(conversation)
        placeholders = [self.layout.sample([num_views] * frames) for frames in frames_per_image]
        extra = sum(placeholders) - len(placeholders)  # image tokens beyond one per image
        if self.turns == "conversation":
            encoded, turn_ids, num_turns, keep = self._whole(conversation, extra)
        else:
            encoded, turn_ids, num_turns, keep = self._packed(conversation, extra)
        ids, labels = encoded.ids[:keep], encoded.labels[:keep]
        images = np.flatnonzero(ids == self.image_token_id)
        if len(images) != len(frames_per_image):
            raise SampleError(f"{len(images)} {self.template.image_token} tokens for {len(frames_per_image)} images")
        if (labels == IGNORE).all():
            raise SampleError("it has no supervised token")
        counts = np.ones(keep, np.int64)
        counts[images] = placeholders
        return TokenizedSample(
            torch.from_numpy(ids.repeat(counts)),
            torch.from_numpy(labels.repeat(counts)),
            None if turn_ids is None else torch.from_numpy(turn_ids[:keep].repeat(counts)),
            num_turns,
            truncated=num_turns < len(conversation.turns) or keep < len(encoded.ids),
        )

    def _check_texts(self, conversation: Conversation) -> None:
        """Reject a text with a special token: it would be an end in the middle, or an image that is not there."""
        humans = (turn.human.replace(IMAGE_PLACEHOLDER, "\n") for turn in conversation.turns)
        for text in (conversation.system or "", *humans, *(turn.answer for turn in conversation.turns)):
            if found := self._reserved.search(text):
                raise SampleError(f"a text contains {found[0]}, which is a special token")

    def _whole(self, conversation: Conversation, extra: int) -> tuple[_Encoded, None, int, int]:
        """Return the first turns as one text, no turn ids, the number of turns, and the number of tokens to keep."""
        room = self.max_length - extra
        encoded = self._encode(conversation)
        if len(encoded.ids) <= room:
            return encoded, None, len(conversation.turns), len(encoded.ids)
        least = max(n for n, turn in enumerate(conversation.turns, 1) if n == 1 or IMAGE_PLACEHOLDER in turn.human)
        firsts = [replace(conversation, turns=conversation.turns[:n]) for n in range(least, len(conversation.turns))]
        fitting = bisect_right(firsts, room, key=lambda first: len(self._encode(first).ids))
        encoded = self._encode(firsts[max(fitting - 1, 0)]) if firsts else encoded
        return encoded, None, least + max(fitting - 1, 0), self._keep(encoded, room, extra)

    def _packed(self, conversation: Conversation, extra: int) -> tuple[_Encoded, NDArray[np.int64], int, int]:
        """Return the prefix with the first turns after it, turn ids, number of turns, and number of tokens to keep."""
        room = self.max_length - extra
        parts = [self._encode(turn) for turn in independent_conversations(conversation)]
        prefix = min(part.prefix for part in parts)
        while any(not np.array_equal(part.ids[:prefix], parts[0].ids[:prefix]) for part in parts):
            prefix -= 1  # the last shared token extends into text that differs
        ends = prefix + np.cumsum([len(part.ids) - prefix for part in parts])
        num_turns = max(int((ends <= room).sum()), 1)
        keep = int(ends[num_turns - 1]) if ends[0] <= room else self._keep(parts[0], room, extra)
        ids = np.concatenate([parts[0].ids, *(part.ids[prefix:] for part in parts[1:num_turns])])
        labels = np.concatenate([parts[0].labels, *(part.labels[prefix:] for part in parts[1:num_turns])])
        lengths = [prefix, *(len(part.ids) - prefix for part in parts[:num_turns])]
        return replace(parts[0], ids=ids, labels=labels), np.arange(len(lengths)).repeat(lengths), num_turns, keep

    def _keep(self, encoded: _Encoded, room: int, extra: int) -> int:
        """Return how many tokens of a text to keep in `room`, up to the end of a character in the last answer."""
        if len(encoded.ids) <= room:
            return len(encoded.ids)
        starts, ends, answer = encoded.starts, encoded.ends, encoded.last_answer
        inside = (ends > answer.start) & (ends <= answer.text_end)
        apart = np.append(starts[1:] >= ends[:-1], True)  # all tokens of one character have its offsets
        cuts = np.flatnonzero(inside & apart) + 1
        cuts = cuts[cuts <= room]
        if not len(cuts):
            before = int((ends <= answer.start).cumprod().sum())
            raise SampleError(f"{before + extra} tokens before the answer, {self.max_length} allowed in all")
        return int(cuts[-1])

    def _encode(self, conversation: Conversation) -> _Encoded:
        """Encode a conversation. Short ones repeat and are cached: tokenizing is the most expensive step of a batch."""
        rendered = self.template.render(conversation)
        if rendered not in self._cache:
            encoded = self._encode_text(rendered)
            if len(rendered.text) > _CACHED_LENGTH:
                return encoded
            if len(self._cache) >= _CACHED_TEXTS:
                self._cache.clear()
            self._cache[rendered] = encoded
        return self._cache[rendered]

    def _encode_text(self, rendered: Rendered) -> _Encoded:
        """Tokenize a text, in which every image is one token."""
        backend = self.tokenizer.backend_tokenizer  # called directly, because transformers doubles the time
        backend.no_truncation()  # another user of the tokenizer may have set it
        backend.no_padding()
        backend.encode_special_tokens = False
        encoding = backend.encode(rendered.text)
        ids = np.array(encoding.ids, np.int64)
        if not len(ids):
            raise SampleError("the tokenizer makes no token of it")
        offsets = np.fromiter(chain.from_iterable(encoding.offsets), np.int64, 2 * len(ids))
        starts, ends = offsets[0::2], offsets[1::2]
        labels = np.full_like(ids, IGNORE)
        for answer in rendered.answers:
            supervised = (starts < answer.end) & (ends > answer.start)
            labels[supervised] = ids[supervised]
        images = np.flatnonzero(ids == self.image_token_id)
        # Without an image, the turns share the system prompt, and the tokens that represent no text.
        prefix = images[-1] + 1 if len(images) else (ends <= rendered.head).cumprod().sum()
        return _Encoded(ids, labels, starts, ends, int(prefix), rendered.answers[-1])
