"""Prompts from questions and conversations, written out by the processor's chat template, as text and as tokens.

User input is text and nothing else: a question that contains a special token or a placeholder is refused, as such
texts are left out of training. Of a prompt's tokens, pre-fusion reads neither placeholders nor answers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from llava_mini.errors import UserError
from llava_mini.models import LlavaMiniProcessor

Message = dict[str, Any]


@dataclass(frozen=True)
class Turn:
    """A question, the number of images and videos that came with it, and its answer if there is one."""

    media: int
    question: str
    answer: str | None


@dataclass(frozen=True)
class Prompt:
    """A conversation up to where its next answer begins: ids with placeholders, and which ones pre-fusion reads."""

    turns: list[Turn]
    ids: list[int]
    visible: list[bool]


def check_question(question: str, processor: LlavaMiniProcessor) -> str:
    """Return the question without white space around it.

    Raises:
        UserError: the question is no text, empty, no Unicode text, or contains a special token.
    """
    if not isinstance(question, str):
        raise UserError(f"the question is {type(question).__name__}; allowed is text", key="question", allowed="text")
    if not question.strip():
        raise UserError("the question is empty", key="question", value=question)
    try:
        question.encode()
    except UnicodeEncodeError as error:
        why = f"the question is no Unicode text from its character {error.start + 1} on"
        raise UserError(why, key="question", value=question) from None
    for token in (processor.image_token, processor.video_token, *_special(processor)):
        if token in question:
            raise UserError(f"the question contains {token}, which is a special token", key="question", value=token)
    return question.strip()


def user_message(question: str, kinds: Sequence[str] = ()) -> Message:
    """Return a user's message: an "image" or a "video" for each of `kinds`, and the question after them."""
    return {"role": "user", "content": [*({"type": kind} for kind in kinds), {"type": "text", "text": question}]}


def prompt_of(processor: LlavaMiniProcessor, messages: list[Message]) -> str:
    """Return the text of a conversation, up to where its next answer begins, see `written`."""
    return written(processor, messages, add_generation_prompt=True)


def written(processor: LlavaMiniProcessor, messages: list[Message], *, add_generation_prompt: bool = False) -> str:
    """Return the text of a conversation, up to the end of its last message.

    Raises:
        UserError: the chat template cannot write the conversation.
    """
    try:
        text: str = processor.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, tokenize=False)
    except (TemplateError, TypeError, ValueError) as error:
        raise UserError(f"the chat template cannot write this conversation: {error}") from error
    return text


def has_bos(processor: LlavaMiniProcessor, prompt: str) -> bool:
    """Whether the chat template has written the token that begins a text; then the tokenizer must not add it.

    The templates of this package never do, others may; `apply_chat_template(tokenize=True)` has the same rule.
    """
    bos = processor.tokenizer.bos_token
    return bos is not None and prompt.startswith(bos)


def end_of_answer(processor: LlavaMiniProcessor) -> int | None:
    """Return the id of the special token that the chat template writes after an answer; None if it writes none."""
    said = [user_message("?"), {"role": "assistant", "content": [{"type": "text", "text": "An answer"}]}]
    try:
        text = written(processor, said)
    except UserError:
        return None
    ids = processor.tokenizer(text.rpartition("An answer")[2].strip(), add_special_tokens=False)["input_ids"]
    return ids[0] if ids and ids[0] in _special(processor).values() else None


def build_prompt(processor: LlavaMiniProcessor, turns: list[Turn], kinds: list[str], tokens: list[int]) -> Prompt:
    """Build the prompt of a conversation whose last turn has no answer yet.

    Answers are hidden from pre-fusion with their end mark, as labels hide them in training. For most tokenizers, the
    space before an answer's first word is part of the answer. `kinds` are "image" or "video" for each image and video
    of the session in order, `tokens` the numbers of their compressed tokens. The tokenizer must be a fast one.

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
    """Return the number of tokens of a question after images and videos (`kinds`), without their compressed tokens.

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


def _special(processor: LlavaMiniProcessor) -> dict[str, int]:
    """Return the special tokens and their ids."""
    tokenizer = processor.tokenizer
    added = {str(token): token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {**dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)), **added}
