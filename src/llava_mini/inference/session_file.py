"""A session on disk: one safetensors file with the compressed tokens and features of all encoded images and videos.

Keys and values are not written: the loading session computes them again from the features or not, depending on its own
options. The description of a session is JSON in the file's header. The model is identified by fingerprints of the parts
that frames go through, by what its config says of their path, and by its type. A checksum over all of it detects
flipped bits. Without it, questions about damaged features would be answered like any others.
"""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from torch import Tensor

from llava_mini.errors import UserError, WriteError
from llava_mini.files import atomic_path
from llava_mini.finetune import fingerprints
from llava_mini.inference.frame_cache import Chunk
from llava_mini.inference.media_source import Media
from llava_mini.inference.quantize import quantize
from llava_mini.media.named import check_file
from llava_mini.models.configuration import PARTS
from llava_mini.models.interop.checkpoint import is_finite
from llava_mini.models.tensor_files import open_tensors, save_tensors
from llava_mini.out_of_memory import is_out_of_memory
from llava_mini.token_layout import HD_VIEWS, SINGLE_VIEW

if TYPE_CHECKING:
    from llava_mini.inference.session import Session

_FORMAT = "llava-mini session 3"
_ANY_FORMAT = "llava-mini session "
_PARTS = PARTS[:-1]  # that frames go through
_PATH_OF_FRAMES = (
    "vision_feature_layer", "compressor", "num_fusion_layers", "compress_before_projection", "fuse_compressed_tokens"
)  # fmt: skip


@dataclass(frozen=True)
class _Model:
    """Identity of what frames go through; how a question is answered may change, how frames were encoded may not."""

    dtype: str
    config: dict[str, Any]
    weights: dict[str, str]

    @classmethod
    def of(cls, session: Session) -> _Model:
        model, found = session.model, fingerprints(session.model)
        config = {name: getattr(model.config, name) for name in _PATH_OF_FRAMES}
        return cls(
            str(model.dtype).removeprefix("torch."),
            json.loads(json.dumps(config)),  # a tuple is read back as a list
            {part: found[part] for part in _PARTS},
        )


@dataclass(frozen=True)
class _Facts:
    """Description in a file: every chunk's item, the encoded images and videos, and the model that encoded them."""

    items: list[int]
    looks: list[Media]
    model: _Model


def save(session: Session, path: Path) -> None:
    """Write a session, completely or not at all; a symbolic link stays, and its target is written.

    Raises:
        UserError: nothing was encoded, the file exists and is no session, or it cannot be written.
    """
    if not session.media:
        raise UserError(f"{path}: nothing was added, so there is nothing to save")
    target = check_replaceable(path)
    tensors: dict[str, Tensor] = {}
    for number, chunk in enumerate(session.store.chunks):
        tensors[f"{number}.tokens"] = chunk.tokens.cpu().contiguous()
        if chunk.features is not None:
            tensors |= {f"{number}.{name}": part for name, part in chunk.features.parts.items()}
    items = [chunk.item for chunk in session.store.chunks]
    facts = json.dumps(asdict(_Facts(items, session.media, _Model.of(session))))
    metadata = {"format": _FORMAT, "facts": facts, "crc32": checksum(facts, tensors)}
    try:
        with atomic_path(target) as temporary:
            save_tensors(tensors, temporary, metadata)
    except WriteError as error:  # report the name that was given, not the link's target
        raise WriteError(error.errno, error.strerror, str(path)) from error
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be written: {error}") from error


def load(session: Session, path: Path) -> None:
    """Fill a new session with the contents of a file.

    Raises:
        UserError: the file cannot be read, is no session or a damaged one, or is of another model.
    """
    check_file(path)
    try:
        with open_tensors(path) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: no session can be read from it: {reason}") from error
    if metadata.get("format") != _FORMAT:
        raise UserError(f"{path}: no session of this program (its format is {metadata.get('format')!r})")
    if metadata.get("crc32") != checksum(metadata.get("facts", ""), tensors):
        raise UserError(f"{path}: the session is damaged: what is in it is not what was saved")
    facts = _facts(path, metadata.get("facts", ""))
    _check_model(path, facts.model, _Model.of(session))
    try:
        for number, item in enumerate(facts.items):
            parts = _taken(tensors, f"{number}.")
            session.store.restore(item, parts.pop("tokens"), parts)
        if tensors:
            raise ValueError(f"{', '.join(sorted(tensors))[:80]} belong to no frames")
        _check_chunks(session, facts.looks)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{path}: the session is damaged: {error}") from error
    session.media = facts.looks


def checksum(facts: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the CRC-32 of a description and of its contiguous tensors; gigabytes a second, no copies."""
    found = zlib.crc32(facts.encode())
    for name, tensor in sorted(tensors.items()):
        found = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), found)
        found = zlib.crc32(tensor.flatten().view(torch.uint8).numpy().data, found)
    return f"{found:08x}"


def check_replaceable(path: Path) -> Path:
    """Return a file's path after all symbolic links, once it is clear that a session may be written there.

    Raises:
        UserError: it is something else, or the name is no name of a file.
    """
    if "\0" in str(path):
        raise UserError(f"{str(path)!r}: the name of a file has no null character")
    target = Path(os.path.realpath(path))
    if not os.path.lexists(target):
        return target
    found = ""
    try:
        with open_tensors(target) as file:
            found = (file.metadata() or {}).get("format", "")
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.ELOOP, errno.ENXIO):  # a folder, a loop of links, a socket
            raise UserError(f"{path}: {error.strerror or error}") from error
    except SafetensorError:
        pass
    if not found.startswith(_ANY_FORMAT):
        raise UserError(f"{path}: there is such a file, and it is no session; name another")
    return target


def _check_model(path: Path, saved: _Model, own: _Model) -> None:
    if saved.dtype != own.dtype:
        raise UserError(f"{path}: saved by a model in {saved.dtype}, this one is in {own.dtype}")
    for name in _PATH_OF_FRAMES:
        if saved.config.get(name) != own.config[name]:
            raise UserError(
                f"{path}: a session of another model: its {name} is {saved.config.get(name)}, "
                f"of this one {own.config[name]}"
            )
    if other := [part for part in _PARTS if saved.weights.get(part) != own.weights[part]]:
        raise UserError(f"{path}: a session of another model: {', '.join(other)} have other weights")


def _check_chunks(session: Session, looks: list[Media]) -> None:
    """Raise ValueError unless the chunks are those of the images and videos, and their tokens those of the model."""
    if not looks:
        raise ValueError("nothing was added")
    frames = [0] * len(looks)
    last = 0
    for chunk in session.store.chunks:
        if not last <= chunk.item < len(looks):
            raise ValueError(f"frames of item {chunk.item} behind those of {last}, of {len(looks)} items")
        last = chunk.item
        frames[last] += len(chunk.tokens)
        _check_tokens(session, chunk)
    for item, (found, look) in enumerate(zip(frames, looks, strict=True)):
        if found != look.frames or not found:
            raise ValueError(f"item {item} has {found} frames, {look.frames} were seen")


def _check_tokens(session: Session, chunk: Chunk) -> None:
    """Check the tokens and features of a chunk; without pre-fusion no features show how many views a frame had."""
    views = (SINGLE_VIEW, HD_VIEWS) if chunk.features is None else (chunk.features.shape[1],)
    allowed = [session.model.layout.frame(count) for count in views]
    if chunk.tokens.shape[1] not in allowed:
        raise ValueError(f"{chunk.tokens.shape[1]} tokens of a frame, the model makes {allowed[0]}")
    parts = {} if chunk.features is None else chunk.features.parts
    if not all(is_finite(part) for part in (chunk.tokens, *parts.values())):
        raise ValueError("values of frames that are no finite numbers")
    if chunk.features is not None and "codes" in parts:
        expected = quantize(torch.zeros(chunk.features.shape), 8)._asdict()
        if any((parts[name].shape, parts[name].dtype) != (each.shape, each.dtype) for name, each in expected.items()):
            raise ValueError("features in 8 bits whose scales do not fit them")


def _facts(path: Path, raw: str) -> _Facts:
    try:
        return TypeAdapter(_Facts).validate_python(json.loads(raw))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: the session is damaged: what it says of itself cannot be read") from error


def _taken(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Remove the tensors with a prefix from `tensors`, and return them by their names without it."""
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors.pop(name) for name in names}
