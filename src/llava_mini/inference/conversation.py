"""A conversation about images and videos as tokens, and which of them pre-fusion sees: no placeholder and no answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from llava_mini.errors import UserError
from llava_mini.inference.prompts import Message, has_bos, prompt_of, user_message, written
from llava_mini.models import LlavaMiniProcessor


@dataclass(frozen=True)
class Turn:
    """A question, the number of images and videos that came with it, and its answer when there is one."""

    media: int
    question: str
    answer: str | None


@dataclass(frozen=True)
class Prompt:
    """A conversation up to where its next answer begins.

    Attributes:
        turns: The conversation.
        ids: Token ids; placeholders stand for compressed tokens.
        visible: Whether pre-fusion sees a token.
    """

    turns: list[Turn]
    ids: list[int]
    visible: list[bool]


def build_prompt(processor: LlavaMiniProcessor, turns: list[Turn], kinds: list[str], tokens: list[int]) -> Prompt:
    """The prompt of a conversation.

    Answers are hidden with their end mark, as labels hide them in training; the space before an answer's first word
    is part of it for most tokenizers.

    Args:
        processor: With a chat template and a fast tokenizer.
        turns: The conversation; the last turn has no answer yet.
        kinds: "image" or "video" for everything that was looked at, in order.
        tokens: How many compressed tokens each of them has.

    Raises:
        UserError: the chat template cannot write it.
    """
    messages: list[Message] = []
    answers: list[tuple[int, int]] = []
    rest = list(kinds)
    for turn in turns:
        media, rest = rest[: turn.media], rest[turn.media :]
        messages.append(user_message(turn.question, media))
        if turn.answer is not None:
            start = len(_expanded(processor, prompt_of(processor, messages), kinds, tokens))
            messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
            end = len(_expanded(processor, written(processor, messages), kinds, tokens).rstrip())
            answers.append((start, end))
    prompt = prompt_of(processor, messages)
    text = _expanded(processor, prompt, kinds, tokens)
    encoded: Any = processor.tokenizer(
        text, add_special_tokens=not has_bos(processor, prompt), return_offsets_mapping=True, verbose=False
    )
    ids: list[int] = encoded["input_ids"]
    placeholder = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    if (found := ids.count(placeholder)) != sum(tokens):
        raise UserError(f"the chat template leaves {found} of {sum(tokens)} placeholders in the prompt")
    visible = [
        token != placeholder and not any(start < last and first < end for first, last in answers)
        for token, (start, end) in zip(ids, encoded["offset_mapping"], strict=True)
    ]
    return Prompt(turns, ids, visible)


def question_tokens(processor: LlavaMiniProcessor, question: str, kinds: list[str]) -> int:
    """Tokens of a question by itself behind what was looked at, without the compressed tokens of that.

    Args:
        processor: As for `build_prompt`.
        question: Text.
        kinds: "image" or "video" for everything that is looked at before it is asked.

    Raises:
        UserError: the chat template cannot write it.
    """
    prompt = build_prompt(processor, [Turn(len(kinds), question, None)], kinds, [1] * len(kinds))
    return len(prompt.ids) - len(kinds)


def shared(first: list[tuple[int, bool]], second: list[tuple[int, bool]]) -> int:
    """How many tokens two prompts have in common at their beginning."""
    for i, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return i
    return min(len(first), len(second))


def _expanded(processor: LlavaMiniProcessor, text: str, kinds: list[str], tokens: list[int]) -> str:
    """The text with a placeholder for every compressed token."""
    marks = {"image": processor.image_token, "video": processor.video_token}
    rest = iter(zip(kinds, tokens, strict=True))

    def placeholders(mark: re.Match[str]) -> str:
        kind, count = next(rest, ("", 0))
        if mark[0] != marks.get(kind):
            raise UserError("the chat template does not write images and videos in the order in which they were given")
        return processor.image_token * count

    return re.sub("|".join(re.escape(mark) for mark in marks.values()), placeholders, text)
