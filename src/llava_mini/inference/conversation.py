"""A conversation about images and videos as tokens, and which ones pre-fusion reads: no placeholder and no answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from llava_mini.errors import UserError
from llava_mini.inference.prompts import Message, has_bos, prompt_of, user_message, written
from llava_mini.models import LlavaMiniProcessor


@dataclass(frozen=True)
class Turn:
    """A question, the number of images and videos that came with it, and its answer if there is one."""

    media: int
    question: str
    answer: str | None


@dataclass(frozen=True)
class Prompt:
    """A conversation up to where its next answer begins.

    Attributes:
        turns: Turns of the conversation.
        ids: Token ids, with a placeholder for each compressed token.
        visible: Whether pre-fusion reads each token.
    """

    turns: list[Turn]
    ids: list[int]
    visible: list[bool]


def build_prompt(processor: LlavaMiniProcessor, turns: list[Turn], kinds: list[str], tokens: list[int]) -> Prompt:
    """Build the prompt of a conversation.

    Answers are hidden from pre-fusion with their end mark, as labels hide them in training. For most tokenizers, the
    space before an answer's first word is part of the answer.

    Args:
        processor: Processor with a chat template and a fast tokenizer.
        turns: Turns of the conversation; the last turn has no answer yet.
        kinds: "image" or "video" for each image and video of the session, in order.
        tokens: Number of compressed tokens for each of `kinds`.

    Raises:
        UserError: the chat template cannot write the conversation.
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
    """Return the number of tokens of a question alone after the images and videos, without their compressed tokens.

    Args:
        processor: Processor with a chat template and a fast tokenizer.
        question: Text of the question.
        kinds: "image" or "video" for each image and video that is encoded before the question.

    Raises:
        UserError: the chat template cannot write the question.
    """
    prompt = build_prompt(processor, [Turn(len(kinds), question, None)], kinds, [1] * len(kinds))
    return len(prompt.ids) - len(kinds)


def shared(first: list[tuple[int, bool]], second: list[tuple[int, bool]]) -> int:
    """Return how many tokens two prompts have in common at their beginning."""
    for i, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return i
    return min(len(first), len(second))


def _expanded(processor: LlavaMiniProcessor, text: str, kinds: list[str], tokens: list[int]) -> str:
    """Return the text with a placeholder for every compressed token."""
    marks = {"image": processor.image_token, "video": processor.video_token}
    rest = iter(zip(kinds, tokens, strict=True))

    def placeholders(mark: re.Match[str]) -> str:
        kind, count = next(rest, ("", 0))
        if mark[0] != marks.get(kind):
            raise UserError("the chat template does not write images and videos in the order in which they were given")
        return processor.image_token * count

    return re.sub("|".join(re.escape(mark) for mark in marks.values()), placeholders, text)
