"""Overrides `key=value` as typed: values of keys for a path, a name or a URI are taken literally.

Hydra parses a value with a grammar in which `=`, `#`, `~`, brackets, commas and non-ASCII letters have a special
meaning or are not allowed. So such values are quoted before Hydra reads them. Hydra still parses text in quotes,
`null` and `${key}`; for keys that take more than text also numbers, `true`, `[a, b]` and `{a: 1}`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from llava_mini.config.types import Component, Config
from llava_mini.errors import UserError

# Keys with a path or URI, in which `~` is a home folder. The other text keys are names.
PLACES = (
    "run_dir", "data.folder", "data.cache_dir", "data.features", "data.train", "data.val",
    "data.test", "model.vision_tower", "model.language_model", "model.tokenizer", "model.weights",
    "tracking.uri", "world.out",
)  # fmt: skip

_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_OTHERS = re.compile(r"null|true|false|[+-]?(?:[\d_]+\.?[\d_]*|\.[\d_]+)(?:e[+-]?\d+)?|[+-]?(?:inf|nan)", re.IGNORECASE)


@dataclass(frozen=True)
class TextKey:
    """What a key accepts besides text.

    Attributes:
        items: Whether the key accepts a list, `[a, b]`.
        others: Whether the key accepts numbers, `true` or `{a: 1}`.
    """

    items: bool
    others: bool


@cache
def text_keys() -> dict[str, TextKey]:
    """Return the config keys that accept free text, not one of a few fixed words, by the types of the config."""
    return dict(_text_keys("", get_type_hints(Config, include_extras=True)))


def check_each_once(overrides: Sequence[str]) -> None:
    """Refuse a key that is given twice on the command line, where the last value would win without a word.

    Raises:
        UserError: naming the key.
    """
    seen: dict[str, str] = {}
    for override in overrides:
        key = override.partition("=")[0]
        if key in seen:
            raise UserError(f"{key} is given twice: {seen[key]} and {override}; give it once", key=key)
        seen[key] = override


def quoted(override: str) -> str:
    """Return an override for Hydra to parse, with literal text in quotes."""
    key, equals, value = override.partition("=")
    kind, bare = text_keys().get(key), value.strip()
    if kind is None or not equals or not value or bare.lower() == "null" or _is_quoted(bare):
        return override
    if kind.items and bare.startswith("[") and bare.endswith("]"):
        items = split(bare[1:-1]) if bare[1:-1].strip() else []
        return f"{key}=[{','.join(item if _is_quoted(item) else quote(item) for item in items)}]"
    if kind.others and (_OTHERS.fullmatch(bare) or (bare.startswith("{") and bare.endswith("}"))):
        return override
    return f"{key}={quote(value)}"


def split(text: str, *, brackets: bool = False) -> list[str]:
    """Split text at commas and strip the spaces around the values. A value that contains a comma needs quotes.

    Args:
        text: Text to split, for example `a, 'b, c'`.
        brackets: Whether `[a, b]` and `{a: 1, b: 2}` count as one value.
    """
    whole = [_QUOTED, *((rf"\[(?:{_QUOTED}|.)*?\]", rf"\{{(?:{_QUOTED}|.)*?\}}") if brackets else ())]
    value = re.compile(rf"\s*((?:{'|'.join(whole)})(?=\s*(?:,|\Z))|[^,]*?)\s*(?:,|\Z)", re.DOTALL)
    values, place = [], 0
    while match := value.match(text, place):
        values.append(match[1])
        place = match.end()
        if place == len(text) and not match[0].endswith(","):
            break
    return values


def quote(text: str) -> str:
    """Return `text` in single quotes, escaped so that Hydra reads the same text back."""
    # A backslash is special only before a quote.
    escaped = re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text)
    return f"'{escaped}'"


def literal(text: str) -> str:
    """Return `text` as a literal in which `${` has no meaning: unchanged for a simple absolute path, else quoted."""
    if re.fullmatch(r"/[\w./+-]*", text, re.ASCII):
        return text
    return quote(re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + "\\${", text))


def at_home(value: Any) -> Any:
    """Return a value of a key in `PLACES` with a leading `~` or `~name` replaced by that home folder."""
    if isinstance(value, str):
        scheme = "sqlite:///"
        if value.startswith(f"{scheme}~"):
            return scheme + os.path.expanduser(value.removeprefix(scheme))
        return os.path.expanduser(value)
    if isinstance(value, list):
        return [at_home(each) for each in value]
    if isinstance(value, dict):
        return {at_home(name): weight for name, weight in value.items()}
    return value


def _is_quoted(value: str) -> bool:
    return re.fullmatch(_QUOTED, value, re.DOTALL) is not None


def _text_keys(prefix: str, types: dict[str, Any]) -> Iterator[tuple[str, TextKey]]:
    for name, annotation in types.items():
        key, kinds = f"{prefix}{name}", list(_alternatives(annotation))
        items = any(get_origin(kind) is list and str in _alternatives(get_args(kind)[0]) for kind in kinds)
        if str in kinds or items:
            yield key, TextKey(items, any(kind is not str and get_origin(kind) is not list for kind in kinds))
        for kind in kinds:
            if is_dataclass(kind) and kind is not Component:
                yield from _text_keys(f"{key}.", get_type_hints(kind, include_extras=True))
            elif get_origin(kind) is dict and get_origin(get_args(kind)[0]) is Literal:
                named, values = get_args(kind)
                yield from _text_keys(f"{key}.", dict.fromkeys(get_args(named), values))


def _alternatives(annotation: Any) -> Iterator[Any]:
    """Yield the types that a value may have, without None and without pydantic's annotations."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _alternatives(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for each in get_args(annotation):
            yield from _alternatives(each)
    elif annotation is not NoneType:
        yield annotation
