"""Build a tokenizer (from a folder or the Hub, with the placeholder of an image, or a stand-in), and the template."""

from __future__ import annotations

import logging
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from llava_mini.config import Component, Config, instantiate
from llava_mini.config.types import Model
from llava_mini.data.text.templates import ConversationTemplate, template_named
from llava_mini.data.toyworld import tokenizer as toyworld
from llava_mini.errors import UserError, named_as, refused
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
    hub = spec.hub_parts
    return int(text_config_of(hub.language_model).vocab_size) if hub else None


def _load(place: str, *, local_files_only: bool) -> PreTrainedTokenizerBase:
    if not is_place(place) or (Path(place).is_dir() and not has_tokenizer(Path(place))):
        reason = "no tokenizer_config.json there; name its folder, or a Hub id (owner/name)"
        raise refused("model.tokenizer", place, reason)
    try:
        return load_tokenizer(place, local_files_only=local_files_only)
    except UserError as error:
        raise UserError(f"model.tokenizer: {error}", key="model.tokenizer", value=place) from error


def build_template(config: Config) -> ConversationTemplate:
    """Return the template that conversations are written out with: one of this package by its name, or a user's own.

    Raises:
        UserError: a name or field is unknown.
    """
    spec = config.data.template
    if isinstance(spec, str):
        with named_as({"template": "data.template"}):
            return template_named(spec)
    path = f"{ConversationTemplate.__module__}.{ConversationTemplate.__qualname__}"
    template: ConversationTemplate = instantiate(Component(path, spec), "data.template")
    return template
