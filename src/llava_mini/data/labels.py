"""LLaVA conversations to token ids and labels, as one sequence or as independent turns packed in one sequence.

Labels come from character offsets: a token is learnt when it overlaps an answer or the end token behind it, so no
template needs to be tokenised piecewise. With K=2 compressed tokens (`i`), two questions `q` and answers `a`, packed:

    text        <s> <image> q1 q1 a1 </s>        <s> <image> q2 a2 </s>
    input_ids   s  i  i  q1 q1 a1 /s q2 a2 /s
    labels      -  -  -  -  -  a1 /s -  a2 /s
    turn_ids    0  0  0  1  1  1  1  2  2  2

Each turn is tokenised behind the shared prefix as if it were alone, so it equals a sample of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llava_mini.data.conversation import IMAGE_PLACEHOLDER, Conversation, independent_conversations
from llava_mini.data.errors import SampleError
from llava_mini.data.templates import ConversationTemplate
from llava_mini.errors import UserError

IGNORE = -100
Turns = Literal["conversation", "independent"]

_CACHED_TEXTS = 8192
_CACHED_LENGTH = 256  # characters; longer texts hardly recur


@dataclass(frozen=True)
class TokenizedSample:
    """[T] int64 each; `turn_ids` is None for one conversation."""

    input_ids: Tensor
    labels: Tensor
    turn_ids: Tensor | None

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class _Encoded:
    """One text: ids and labels [T], and the number of tokens that come before any turn of it."""

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    prefix: int


class ConversationTokenizer:
    """Turns conversations into `TokenizedSample`s.

    Args:
        tokenizer: A fast tokenizer of transformers that knows the template's image token.
        template: How conversations are written out.
        turns: "conversation" (later turns see earlier ones) or "independent" (every turn sees the images and itself).
        num_image_tokens: K, placeholders of a frame (0 for compressors that leave none).
        max_length: T at most.

    Raises:
        UserError: an argument is impossible or does not fit the tokenizer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: ConversationTemplate,
        *,
        turns: Turns = "conversation",
        num_image_tokens: int,
        max_length: int = 4096,
    ) -> None:
        if turns not in ("conversation", "independent"):
            raise UserError(f"turns={turns!r}; allowed: conversation, independent")
        if num_image_tokens < 0 or max_length < 1:
            raise UserError(f"num_image_tokens={num_image_tokens} must be >= 0 and max_length={max_length} >= 1")
        if not tokenizer.is_fast:
            raise UserError(f"tokenizer {tokenizer.name_or_path!r} gives no character offsets; a fast one is needed")
        if template.image_token not in tokenizer.get_vocab():
            raise UserError(f"tokenizer {tokenizer.name_or_path!r} has no token {template.image_token!r}")
        self.tokenizer, self.template, self.turns = tokenizer, template, turns
        self.num_image_tokens, self.max_length = num_image_tokens, max_length
        self.image_token_id = tokenizer.get_vocab()[template.image_token]
        self._cache: dict[tuple[str, tuple[tuple[int, int], ...]], _Encoded] = {}

    @property
    def pad_token_id(self) -> int:
        """What fills up a batch; the end token where the tokenizer has no padding token."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    def __call__(self, conversation: Conversation, frames_per_image: Sequence[int]) -> TokenizedSample:
        """Tokenises a conversation about images (or videos) of so many frames each.

        Raises:
            SampleError: the placeholders do not match the images, or the sample is longer than `max_length`.
        """
        if conversation.num_images != len(frames_per_image):
            raise SampleError(f"{conversation.num_images} {IMAGE_PLACEHOLDER} for {len(frames_per_image)} images")
        if self.turns == "conversation":
            encoded = self._encode(conversation)
            ids, labels, turn_ids = encoded.ids, encoded.labels, None
        else:
            ids, labels, turn_ids = self._pack(conversation)
        images = np.flatnonzero(ids == self.image_token_id)
        if len(images) != len(frames_per_image):
            raise SampleError(f"a text contains {self.template.image_token}, which stands for an image")
        counts = np.ones(len(ids), np.int64)
        counts[images] = [self.num_image_tokens * frames for frames in frames_per_image]
        if (length := int(counts.sum())) > self.max_length:
            raise SampleError(f"{length} tokens, {self.max_length} allowed")
        return TokenizedSample(
            torch.from_numpy(ids.repeat(counts)),
            torch.from_numpy(labels.repeat(counts)),
            None if turn_ids is None else torch.from_numpy(turn_ids.repeat(counts)),
        )

    def _pack(self, conversation: Conversation) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Ids, labels and turn ids of the shared prefix and all turns behind it."""
        parts = [self._encode(turn) for turn in independent_conversations(conversation)]
        prefix = parts[0].prefix
        shared = parts[0].ids[:prefix]
        if any(part.prefix != prefix or not np.array_equal(part.ids[:prefix], shared) for part in parts):
            raise SampleError("the turns do not share their prefix")
        ids = np.concatenate([shared, *(part.ids[prefix:] for part in parts)])
        labels = np.concatenate([parts[0].labels[:prefix], *(part.labels[prefix:] for part in parts)])
        lengths = [prefix, *(len(part.ids) - prefix for part in parts)]
        return ids, labels, np.arange(len(lengths)).repeat(lengths)

    def _encode(self, conversation: Conversation) -> _Encoded:
        """A rendered conversation. Short ones recur and are kept: tokenising is the dearest step of a batch."""
        text, spans = self.template.render(conversation)
        if (text, spans) not in self._cache:
            encoded = self._encode_text(text, spans)
            if len(text) > _CACHED_LENGTH:
                return encoded
            if len(self._cache) >= _CACHED_TEXTS:
                self._cache.clear()
            self._cache[text, spans] = encoded
        return self._cache[text, spans]

    def _encode_text(self, text: str, spans: tuple[tuple[int, int], ...]) -> _Encoded:
        """Ids, labels and prefix of a text; every image is one token."""
        encoding: Any = self.tokenizer(text, return_offsets_mapping=True)
        ids = np.array(encoding["input_ids"], np.int64)
        starts, ends = np.array(encoding["offset_mapping"], np.int64).T
        learnt = np.zeros(len(ids), bool)
        for start, end in spans:
            learnt |= (starts < end) & (ends > start)
        images = np.flatnonzero(ids == self.image_token_id)
        # Without an image the turns share what the system prompt says, and the tokens that stand for no text.
        before = (ends <= len(self.template.system)).cumprod().sum()
        return _Encoded(ids, np.where(learnt, ids, IGNORE), int(images[-1] + 1 if len(images) else before))
