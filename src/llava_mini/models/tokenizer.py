"""Tokenizers of language models, and the placeholder of an image in a tokenizer that does not have it.

The placeholder's id is beyond the vocabulary, so that no row of the language model's tables belongs to it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llava_mini.errors import UserError
from llava_mini.files import why_unreadable

IMAGE_TOKEN = "<image>"
_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder contains any file of a tokenizer."""
    return any((folder / name).is_file() for name in _FILES)


def load_tokenizer(place: str, **kwargs: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer in a folder or at a Hub id; one without a padding token pads with its end token.

    The keywords are those of transformers' `from_pretrained`.

    Raises:
        UserError: there is no tokenizer, or it needs a library that is not installed.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **kwargs)
    except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
        reason = why_unreadable(Path(place)) or " ".join(str(error).split())[:200]
        only_model = (Path(place) / "tokenizer.model").is_file() and not (Path(place) / "tokenizer.json").is_file()
        hint = "; a tokenizer.model without tokenizer.json needs `pip install sentencepiece`" if only_model else ""
        raise UserError(f"tokenizer {place}: cannot be loaded: {reason}{hint}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def add_placeholder(tokenizer: PreTrainedTokenizerBase, vocab_size: int, token: str = IMAGE_TOKEN) -> int:
    """Make `token` a single token and return its id: beyond the vocabulary if the tokenizer did not have it.

    A tokenizer numbers new tokens from its own last token. But a table may have more rows than that (`vocab_size`;
    Qwen2.5: 151,936 rows for 151,665 tokens), and the placeholder would take one of them. So its id is written into the
    tokenizer.

    Raises:
        UserError: the tokenizer is not a fast one, or has tokens that the vocabulary has no row for.
    """
    known = tokenizer.get_vocab()
    largest = max(token_id for text, token_id in known.items() if text != token)
    if largest >= vocab_size:
        raise UserError(
            f"tokenizer {tokenizer.name_or_path!r}: its tokens go up to id {largest}, the language model's vocabulary "
            f"has {vocab_size} rows"
        )
    if token not in known:
        place_token(tokenizer, token, vocab_size)
    return int(tokenizer.convert_tokens_to_ids(token))


def place_token(tokenizer: PreTrainedTokenizerBase, token: str, token_id: int) -> None:
    """Give a token, new or with another id so far, an id that no other token has, as a special token.

    Raises:
        UserError: the tokenizer is not a fast one.
    """
    if not tokenizer.is_fast:
        raise UserError(f"tokenizer {tokenizer.name_or_path!r}: a fast one (tokenizer.json) is needed")
    fields = json.loads(tokenizer.backend_tokenizer.to_str())
    if not isinstance(fields["model"].get("vocab"), dict):
        raise UserError(
            f"tokenizer {tokenizer.name_or_path!r}: a {fields['model']['type']} model cannot take {token!r}"
        )
    fields["model"]["vocab"][token] = token_id
    added = {
        "id": token_id, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
        "special": True,
    }  # fmt: skip
    fields["added_tokens"] = [each for each in fields["added_tokens"] if each["content"] != token] + [added]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(fields))
