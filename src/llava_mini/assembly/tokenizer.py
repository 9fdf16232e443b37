"""Build a tokenizer (from a folder or the Hub, with the placeholder of an image, or a stand-in), and the template."""

from __future__ import annotations

import logging
from pathlib import Path

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from llava_mini.config import Component, Config, instantiate
from llava_mini.config.types import Model
from llava_mini.data.text.templates import ConversationTemplate, template_named, template_of
from llava_mini.data.toyworld import tokenizer as toyworld
from llava_mini.errors import UserError, refused
from llava_mini.models.interop.parts import is_place, text_config_of
from llava_mini.models.tokenizer import add_placeholder, has_tokenizer, load_tokenizer, place_token

log = logging.getLogger("llava_mini")


def build_tokenizer(config: Config) -> PreTrainedTokenizerBase:
    """Build the model's tokenizer, in which the placeholder of an image is one token.

    With `model.weights=random` nothing is downloaded: if the tokenizer is not on this machine, the toy world's
    tokenizer replaces it, with the placeholder after the vocabulary of the model.

    Raises:
        UserError: the tokenizer is not available, or has more tokens than the vocabulary.
    """
    spec = config.model
    place, rows = spec.tokenizer, vocab_size(spec)
    try:
        tokenizer = _load(place, local_files_only=spec.weights == "random")
    except UserError:
        if spec.weights != "random" or rows is None:
            raise
        log.info("model.tokenizer=%s is not on this machine; the toy world's takes its place", place)
        tokenizer = toyworld.build_tokenizer()
        place_token(tokenizer, image_token(config), rows)
    if rows is not None:
        add_placeholder(tokenizer, rows, image_token(config))
    return tokenizer


def image_token(config: Config) -> str:
    """Return the placeholder of an image in the tokenizer's vocabulary."""
    template = config.data.template
    return "<image>" if isinstance(template, str) else str(template.get("image_token", "<image>"))


def vocab_size(spec: Model) -> int | None:
    """Return the rows of the language model's embedding; None if there are as many as the tokenizer has tokens.

    Raises:
        UserError: the language model whose config says it cannot be found.
    """
    if "vocab_size" in spec.text_config:
        return int(spec.text_config["vocab_size"])
    parts = spec.parts
    return int(text_config_of(parts.language_model).vocab_size) if parts else None


def _load(place: str, *, local_files_only: bool) -> PreTrainedTokenizerBase:
    if not is_place(place) or (Path(place).is_dir() and not has_tokenizer(Path(place))):
        reason = "no tokenizer_config.json there; name its folder, or a Hub id (owner/name)"
        raise refused("model.tokenizer", place, reason)
    try:
        return load_tokenizer(place, local_files_only=local_files_only)
    except UserError as error:
        raise UserError(f"model.tokenizer: {error}", key="model.tokenizer", value=place) from error


def build_template(config: Config, tokenizer: PreTrainedTokenizerBase) -> ConversationTemplate:
    """Return the template that conversations are written out with.

    `data.template` names one of this package or gives the fields of a user's own; `tokenizer` stands for the one that
    writes what the tokenizer's chat template writes.

    Raises:
        UserError: a name or field is unknown, or no template of this package writes what the tokenizer's writes.
    """
    spec = config.data.template
    if spec == "tokenizer":
        return _template_of(tokenizer, config.model.tokenizer)
    if isinstance(spec, str):
        try:
            return template_named(spec)
        except UserError as error:
            raise refused("data.template", spec, allowed=f"tokenizer, {error.allowed}") from error
    path = f"{ConversationTemplate.__module__}.{ConversationTemplate.__qualname__}"
    template: ConversationTemplate = instantiate(Component(path, spec), "data.template")
    return template


def _template_of(tokenizer: PreTrainedTokenizerBase, place: str) -> ConversationTemplate:
    allowed = "a template by its name, or its fields"
    if not tokenizer.chat_template:
        raise refused("data.template", "tokenizer", f"{place} has no chat template; give {allowed}")
    begin = tokenizer.bos_token if tokenizer("a").input_ids[0] == tokenizer.bos_token_id else None
    try:
        template = template_of(
            lambda messages: str(tokenizer.apply_chat_template(messages, tokenize=False)), str(begin or "")
        )
    except (TemplateError, TypeError, ValueError) as error:
        why = f"the chat template of {place} cannot be used ({' '.join(str(error).split())}); give {allowed}"
        raise refused("data.template", "tokenizer", why) from error
    if template is None:
        raise refused("data.template", "tokenizer", f"the chat template of {place} is like none here; give {allowed}")
    return template
