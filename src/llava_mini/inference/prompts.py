"""Prompts from questions: messages in the format of transformers, written out by the processor's chat template.

User input is text and nothing else: a question that contains a special token or a placeholder is refused, as such
texts are left out of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from llava_mini.errors import UserError
from llava_mini.models import LlavaMiniProcessor

Message = dict[str, Any]


def check_question(question: str, processor: LlavaMiniProcessor) -> str:
    """Return the question without white space around it.

    Raises:
        UserError: the question is no text, empty, no Unicode text, or contains a special token.
    """
    if not isinstance(question, str):
        raise UserError(f"the question is {type(question).__name__}; allowed is text")
    if not question.strip():
        raise UserError("the question is empty")
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the question is no Unicode text from its character {error.start + 1} on") from None
    for token in (processor.image_token, processor.video_token, *_special(processor)):
        if token in question:
            raise UserError(f"the question contains {token}, which is a special token")
    return question.strip()


def user_message(question: str, kinds: Sequence[str] = ()) -> Message:
    """Return a user's message: an "image" or a "video" for each of `kinds`, and the question after them."""
    return {"role": "user", "content": [*({"type": kind} for kind in kinds), {"type": "text", "text": question}]}


def prompt_of(processor: LlavaMiniProcessor, messages: list[Message]) -> str:
    """Return the text of a conversation, up to where its next answer begins.

    Raises:
        UserError: the chat template cannot write the conversation.
    """
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


def _special(processor: LlavaMiniProcessor) -> dict[str, int]:
    """Return the special tokens and their ids."""
    tokenizer = processor.tokenizer
    added = {str(token): token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {**dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)), **added}
