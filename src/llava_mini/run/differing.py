"""Keys in which two configs differ when a run's folder is resumed: those that make it another run, and the others."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llava_mini.run.identity import BATCH_FACTORS, BATCHES_A_STEP, decisive

_SHOWN = 4  # number of keys that a message names
_LONGEST = 60  # characters of a value in a message
# Values under `inputs` are hashes of content, so a message names the content instead of its value.
_INPUTS = {"weights": "model.weights", "tokenizer": "model.tokenizer", "own_code": "code of --config-dir"}
_ABSENT = "(none)"


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Keys whose values differ, as `key=value, now value`: those that make another run, and those that do not.

    Where another option of a config group was chosen, only the option is named.
    """
    old, new = dict(_flat(before)), dict(_flat(now))
    another = set(_differ(dict(_flat(decisive(before))), dict(_flat(decisive(now)))))
    if f"trainer.{BATCHES_A_STEP}" in another:
        another |= {f"trainer.{key}" for key in BATCH_FACTORS}
    chosen = {key.removeprefix("choices.") for key in another if key.startswith("choices.")}
    texts: tuple[list[str], list[str]] = ([], [])
    for key in _differ(old, new):
        if key.split(".")[0] not in chosen:
            texts[key not in another].append(_text(key, old.get(key, _ABSENT), new.get(key, _ABSENT)))
    return texts


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Keys of two flat mappings whose values differ, as `key=value, now value`."""
    return [_text(key, before.get(key, _ABSENT), now.get(key, _ABSENT)) for key in _differ(before, now)]


def listed(texts: Sequence[str]) -> str:
    """Text with the first few of `texts` and the number of the others."""
    more = f"; and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return "; ".join(texts[:_SHOWN]) + more


def _flat(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _differ(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Keys whose values a config's hash distinguishes: 1 is neither 1.0 nor true."""
    absent = object()
    return [key for key in {**old, **new} if _json(old.get(key, absent)) != _json(new.get(key, absent))]


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _text(key: str, old: Any, new: Any) -> str:
    room, _, name = key.partition(".")
    if room == "inputs" and name in _INPUTS:
        return f"the content of {_INPUTS[name]}"
    return f"{name if room == 'choices' else key}={_shown(old)}, now {_shown(new)}"


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else _json(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
