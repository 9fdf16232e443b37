"""Writes samples to WebDataset shards: standard tar files and an index that says where and what every sample is.

With the index, a sample is read by its number with one ranged read, so any order costs the same, and the tars stay
readable by every WebDataset tool. A shard set is a folder:

    shard-000000.tar   000000-00000.json, 000000-00000.jpg, 000000-00001.json, ...
    shard-000000.json  sidecar, written when the tar is complete: size, SHA-256, place and facts of every sample
    index.npy          the samples of all sidecars, mapped into memory when the set is opened
    shards.json        the shards' names, sizes and SHA-256; written last, so a set that has it is complete

Tars are deterministic: fixed times and owners, the record first, then the other members by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llava_mini.data.format.index import (
    FORMAT_VERSION,
    KEY,
    SET_FILE,
    Facts,
    Members,
    facts_of,
    index_rows,
    read_sidecar,
    write_index,
)
from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.format.storage import LocalStorage
from llava_mini.data.format.ustar import EXTENSION, write_tar
from llava_mini.errors import UserError
from llava_mini.files import atomic_path, write_text


def write_shard(
    folder: Path,
    number: int,
    samples: Iterable[tuple[str, Members]],
    rejected: Sequence[tuple[str, str]] = (),
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write samples, (key, {extension: content}), as shard `number` of the set in `folder`; the sidecar comes last.

    Samples are taken one at a time. When taking one fails, no partial file remains. `rejected` (records that could not
    be used, as (id, reason)) and `notes` (further content of the sidecar) are read after the last sample, so that the
    generator of the samples may add to them.

    Raises:
        UserError: A key is repeated or unusable as a name.
        SampleError: A sample's images are neither a single one nor numbered.
    """
    tar, sidecar = _tar_path(folder, number), sidecar_path(folder, number)
    folder.mkdir(parents=True, exist_ok=True)
    seen: dict[str, Facts] = {}
    with atomic_path(tar) as temporary:
        with open(temporary, "wb") as file:
            rows = [[*place, *seen[place[0]]] for place in write_tar(file, _noted(samples, seen))]
        with open(temporary, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
        sidecar.unlink(missing_ok=True)  # it belongs to a tar that is now replaced
    described = {"version": FORMAT_VERSION, "name": tar.name, "bytes": size, "sha256": digest, "samples": rows}
    noted = {} if notes is None else {"notes": dict(notes)}
    write_text(sidecar, json.dumps({**described, "rejected": [list(each) for each in rejected], **noted}))


def _noted(samples: Iterable[tuple[str, Members]], seen: dict[str, Facts]) -> Iterator[tuple[str, Members]]:
    """Yield the samples, and note the facts of each in `seen` by key."""
    for key, members in samples:
        if not KEY.fullmatch(key) or key in seen:
            raise UserError(f"sample key {key!r} is a repetition, or not 1 to 32 of the characters A-Z a-z 0-9 _ -")
        if bad := [extension for extension in members if not EXTENSION.fullmatch(extension)]:
            raise UserError(f"member {bad[0]!r} of {key}: allowed are extensions of A-Z a-z 0-9 _ - between dots")
        seen[key] = facts_of(members)
        yield key, members


def is_written(folder: Path, number: int) -> bool:
    """Whether a shard is complete: both its sidecar and its tar exist."""
    return sidecar_path(folder, number).is_file() and _tar_path(folder, number).is_file()


def is_complete(folder: Path) -> bool:
    """Whether a folder contains a whole shard set."""
    return (folder / SET_FILE).is_file()


def finish_set(folder: Path, num_shards: int, plan: dict[str, Any] | None = None) -> ShardSet:
    """Make a complete set of shards 0 to `num_shards` - 1, which are all written; `plan` becomes `ShardSet.plan`.

    Raises:
        UserError: A shard is missing, damaged or of another size than its sidecar says, a key is repeated, or there
            is no sample at all.
    """
    missing = [number for number in range(num_shards) if not is_written(folder, number)]
    if missing:
        first = _tar_path(folder, missing[0]).stem
        raise UserError(f"{folder}: {len(missing)} of {num_shards} shards are not written, the first is {first}")
    parts: list[NDArray[np.void]] = []
    shards: list[dict[str, Any]] = []
    sources: dict[str, int] = {}
    storage = LocalStorage(folder)
    for number in range(num_shards):
        sidecar = read_sidecar(sidecar_path(folder, number))
        storage.check(_tar_path(folder, number).name, sidecar["bytes"])
        parts.append(index_rows(sidecar, number, sources))
        counts = {"samples": len(sidecar["samples"]), "rejected": len(sidecar["rejected"])}
        shards.append({**{field: sidecar[field] for field in ("name", "bytes", "sha256")}, **counts})
    _check_keys(folder, parts)
    index = write_index(folder, parts)
    listing = {"version": FORMAT_VERSION, "shards": shards, "sources": list(sources), "index": index, "plan": plan}
    write_text(folder / SET_FILE, json.dumps(listing))
    return ShardSet(folder)


def _check_keys(folder: Path, parts: list[NDArray[np.void]]) -> None:
    keys = np.concatenate([part["key"] for part in parts]) if parts else np.zeros(0, "S32")
    if not len(keys):
        raise UserError(f"no sample to write to {folder}")
    keys.sort()
    if len(twice := keys[1:][keys[1:] == keys[:-1]]):
        raise UserError(f"{folder} has several samples of one key: {twice[0].decode()}")


def write_shards(samples: Iterable[tuple[str, Members]], folder: Path, samples_per_shard: int = 1000) -> ShardSet:
    """Write samples, (key, {extension: content}), as a whole set.

    Raises:
        UserError: The folder already contains a shard set, there is no sample, or a key is repeated or unusable as a
            name.
    """
    if is_complete(folder):
        raise UserError(f"{folder} already contains a shard set; delete it or name another folder")
    for stale in folder.glob("shard-*"):  # left by an interrupted build
        stale.unlink()
    remaining = iter(samples)
    number = 0
    for first in remaining:
        write_shard(folder, number, chain([first], islice(remaining, samples_per_shard - 1)))
        number += 1
    return finish_set(folder, number)


def _tar_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:06d}.tar"


def sidecar_path(folder: Path, number: int) -> Path:
    """Return the path of a shard's sidecar."""
    return folder / f"shard-{number:06d}.json"
