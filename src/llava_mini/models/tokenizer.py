"""Tokenizers of language models, and the placeholder of an image in one that does not know it.

The placeholder lies behind the vocabulary, so that no row of the language model's tables is its own.
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
    """Whether any file of a tokenizer lies there."""
    return any((folder / name).is_file() for name in _FILES)


def load_tokenizer(place: str, **kwargs: Any) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder or at a Hub id; one without a padding token pads with its end token.

    Args:
        place: Folder or Hub id.
        **kwargs: Of transformers' `from_pretrained`.

    Raises:
        UserError: there is none, or it needs a library that is not installed.
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
    """Make `token` one token, whose id lies beyond the vocabulary if the tokenizer did not have it.

    A tokenizer counts on from its own last token, but a table may have more rows than that (Qwen2.5: 151,936 rows for
    151,665 tokens), one of which the placeholder would then take. So its id is written into the tokenizer itself.

    Args:
        tokenizer: Changed in place.
        vocab_size: Rows of the language model's embedding.
        token: The placeholder.

    Returns:
        Its id.

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
    """Give a token this very id, as a special token.

    Args:
        tokenizer: Changed in place.
        token: New, or with another id so far.
        token_id: An id that no other token has.

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
