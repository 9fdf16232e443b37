"""A session on disk: one safetensors file with the compressed tokens and features of everything that was looked at.

Keys and values are not written: they are computed again from the features, or are not, as the loading session keeps
them. What the file says of itself is JSON in its header; the model is known by fingerprints of the parts that frames go
through.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llava_mini.errors import UserError
from llava_mini.files import atomic_path
from llava_mini.finetune import fingerprints
from llava_mini.inference.looking import Look
from llava_mini.inference.media import check_file

if TYPE_CHECKING:
    from llava_mini.inference.session import Session

_FORMAT = "llava-mini session 1"
_PARTS = ("vision_tower", "compressor", "projector", "prefusion")


def save(session: Session, path: Path) -> None:
    """Write a session, whole or not at all.

    Raises:
        UserError: nothing was looked at, or the file cannot be written.
    """
    if not session.looks:
        raise UserError(f"{path}: nothing was looked at, so there is nothing to save")
    tensors: dict[str, Tensor] = {}
    for number, chunk in enumerate(session.store.chunks):
        tensors[f"{number}.tokens"] = chunk.tokens.cpu().contiguous()
        if chunk.features is not None:
            tensors |= {f"{number}.{name}": part for name, part in chunk.features.parts().items()}
    facts = {
        "items": [chunk.item for chunk in session.store.chunks],
        "looks": [asdict(look) for look in session.looks],
        "model": _fingerprints(session),
    }
    try:
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"format": _FORMAT, "facts": json.dumps(facts)})
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be written: {error}") from error


def load(session: Session, path: Path) -> None:
    """Fill a new session with what a file holds.

    Raises:
        UserError: it cannot be read, is no session, or of another model.
    """
    check_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: no session can be read from it: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise UserError(f"{path}: no session of this program (its format is {metadata.get('format')!r})")
    facts = _facts(path, metadata.get("facts", ""))
    own = _fingerprints(session)
    if other := [part for part in _PARTS if facts["model"].get(part) != own[part]]:
        raise UserError(f"{path}: a session of another model: {', '.join(other)} have other weights")
    try:
        for number, item in enumerate(facts["items"]):
            session.store.restore(item, tensors.pop(f"{number}.tokens"), _rest(tensors, f"{number}."))
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: the session is damaged: {error}") from error
    session.looks = facts["looks"]


def _fingerprints(session: Session) -> dict[str, str]:
    """Of the parts that frames go through; how a question is answered may change, what was seen may not."""
    found = fingerprints(session.model)
    return {part: found[part] for part in _PARTS}


def _facts(path: Path, raw: str) -> dict[str, Any]:
    try:
        facts = json.loads(raw)
        return {
            "items": TypeAdapter(list[int]).validate_python(facts["items"]),
            "looks": TypeAdapter(list[Look]).validate_python(facts["looks"]),
            "model": TypeAdapter(dict[str, str]).validate_python(facts["model"]),
        }
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise UserError(f"{path}: the session is damaged: what it says of itself cannot be read") from error


def _rest(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
