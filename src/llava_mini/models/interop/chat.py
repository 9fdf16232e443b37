"""Chat template of another project's folder, if it is a template for images.

A folder of a language model has one too, but for text only. Given an image, that template ignores it or fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jinja2 import TemplateError

from llava_mini.errors import UserError
from llava_mini.files import read_json, reading
from llava_mini.models.processor import LlavaMiniProcessor

_QUESTION = "What is it?"
_ASKED = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": _QUESTION}]}]


def own_chat_template(source: Path, processor: LlavaMiniProcessor) -> str | None:
    """Return the template of a folder that writes an image as the processor's image token; None if there is none.

    Raises:
        UserError: a file that should contain a template is not a JSON object.
    """
    return next((found for found in _templates(source, processor) if _shows_an_image(found, processor)), None)


def _templates(source: Path, processor: LlavaMiniProcessor) -> Iterator[str]:
    if (path := source / "chat_template.jinja").is_file():
        try:
            with reading(path):
                text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: no text in UTF-8 ({error.reason})") from error
        yield text
    for name in ("chat_template.json", "processor_config.json"):  # where older versions of transformers wrote it
        if (path := source / name).is_file():
            found = read_json(path).get("chat_template")
            if isinstance(found, str):
                yield found
    if isinstance(processor.tokenizer.chat_template, str):
        yield processor.tokenizer.chat_template


def _shows_an_image(template: str, processor: LlavaMiniProcessor) -> bool:
    try:
        text = processor.apply_chat_template(_ASKED, chat_template=template, add_generation_prompt=True, tokenize=False)
    except (TemplateError, TypeError, ValueError):  # raised by templates that expect content to be a string
        return False
    return text.count(processor.image_token) == 1 and _QUESTION in text
