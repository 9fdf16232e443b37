"""Samples in WebDataset shards: standard tar files and an index that says where every sample lies and what it is.

With the index a sample is read by its number with one ranged read, so any order costs the same, and the tars stay
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
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llava_mini.data.errors import SampleError
from llava_mini.data.index import (
    FORMAT_VERSION,
    INDEX_FILE,
    KEY,
    Facts,
    Members,
    Modality,
    check_version,
    describes_tar,
    facts_of,
    index_rows,
    is_count,
    map_index,
    picture_names,
    read_json,
    read_sidecar,
    sidecar_row,
    write_index,
)
from llava_mini.data.storage import LocalStorage
from llava_mini.data.ustar import BLOCK, EXTENSION, parse_members, write_tar
from llava_mini.errors import UserError
from llava_mini.files import atomic_path, write_text

__all__ = [
    "Members",
    "Modality",
    "ShardSet",
    "finish_set",
    "is_complete",
    "is_written",
    "picture_names",
    "write_shard",
    "write_shards",
]

_SET_FILE = "shards.json"


def write_shard(
    folder: Path,
    number: int,
    samples: Iterable[tuple[str, Members]],
    rejected: Sequence[tuple[str, str]] = (),
) -> None:
    """Writes samples, (key, {extension: content}), as shard `number` of the set in `folder`; the sidecar comes last.

    Samples are taken one at a time. When taking one fails, nothing is left behind.

    Args:
        folder: Of the set.
        number: Of the shard.
        samples: They may be none.
        rejected: (id, reason) of records that could not be used; read after the last sample, so that whoever yields
            the samples may add to it.

    Raises:
        UserError: a key is repeated or unusable as a name.
        SampleError: a sample's pictures are neither one nor numbered.
    """
    tar, sidecar = _tar_path(folder, number), _sidecar_path(folder, number)
    folder.mkdir(parents=True, exist_ok=True)
    seen: dict[str, Facts] = {}
    with atomic_path(tar) as temporary:
        with open(temporary, "wb") as file:
            rows = [sidecar_row(*place, seen[place[0]]) for place in write_tar(file, _noted(samples, seen))]
        with open(temporary, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
        sidecar.unlink(missing_ok=True)  # of a tar that is now replaced
    described = {"version": FORMAT_VERSION, "name": tar.name, "bytes": size, "sha256": digest}
    write_text(sidecar, json.dumps({**described, "samples": rows, "rejected": [list(each) for each in rejected]}))


def _noted(samples: Iterable[tuple[str, Members]], seen: dict[str, Facts]) -> Iterator[tuple[str, Members]]:
    """The samples, with the facts of each noted by key."""
    for key, members in samples:
        if not KEY.fullmatch(key) or key in seen:
            raise UserError(f"sample key {key!r} is a repetition, or not 1 to 32 of the characters A-Z a-z 0-9 _ -")
        if bad := [extension for extension in members if not EXTENSION.fullmatch(extension)]:
            raise UserError(f"member {bad[0]!r} of {key}: allowed are extensions of A-Z a-z 0-9 _ - between dots")
        seen[key] = facts_of(members)
        yield key, members


def is_written(folder: Path, number: int) -> bool:
    """Whether a shard is complete: its sidecar is there, and so is its tar."""
    return _sidecar_path(folder, number).is_file() and _tar_path(folder, number).is_file()


def is_complete(folder: Path) -> bool:
    """Whether a folder holds a whole set."""
    return (folder / _SET_FILE).is_file()


def finish_set(folder: Path, num_shards: int, plan: dict[str, Any] | None = None) -> ShardSet:
    """Makes shards 0 to `num_shards` - 1, which are all written, a complete set.

    Args:
        folder: Of the set.
        num_shards: How many shards it has.
        plan: What the set was made from, for `ShardSet.plan`.

    Raises:
        UserError: a shard is missing, damaged or of another size than its sidecar says, a key is repeated, or there
            is no sample at all.
    """
    missing = [number for number in range(num_shards) if not is_written(folder, number)]
    if missing:
        first = _tar_path(folder, missing[0]).stem
        raise UserError(f"{folder}: {len(missing)} of {num_shards} shards are not written, the first is {first}")
    parts: list[NDArray[np.void]] = []
    shards: list[dict[str, Any]] = []
    sources: dict[str, int] = {}
    for number in range(num_shards):
        sidecar = read_sidecar(_sidecar_path(folder, number))
        _check_size(_tar_path(folder, number), sidecar["bytes"])
        parts.append(index_rows(sidecar, number, sources))
        counts = {"samples": len(sidecar["samples"]), "rejected": len(sidecar["rejected"])}
        shards.append({**{field: sidecar[field] for field in ("name", "bytes", "sha256")}, **counts})
    _check_keys(folder, parts)
    for stale in folder.glob(".shard-*.tmp"):  # of processes that were killed; no shard is being written any more
        stale.unlink(missing_ok=True)
    index = write_index(folder, parts)
    listing = {"version": FORMAT_VERSION, "shards": shards, "sources": list(sources), "index": index, "plan": plan}
    write_text(folder / _SET_FILE, json.dumps(listing))
    return ShardSet(folder)


def _check_keys(folder: Path, parts: list[NDArray[np.void]]) -> None:
    keys = np.concatenate([part["key"] for part in parts]) if parts else np.zeros(0, "S32")
    if not len(keys):
        raise UserError(f"no sample to write to {folder}")
    keys.sort()
    if len(twice := keys[1:][keys[1:] == keys[:-1]]):
        raise UserError(f"{folder} has several samples of one key: {twice[0].decode()}")


def write_shards(samples: Iterable[tuple[str, Members]], folder: Path, samples_per_shard: int = 1000) -> ShardSet:
    """Writes samples, (key, {extension: content}), as a whole set.

    Raises:
        UserError: the folder holds a shard set already, there is no sample, or a key is repeated or unusable as a name.
    """
    if is_complete(folder):
        raise UserError(f"{folder} already holds a shard set; delete it or name another folder")
    for stale in folder.glob("shard-*"):  # of a build that was interrupted
        stale.unlink()
    remaining = iter(samples)
    number = 0
    for first in remaining:
        write_shard(folder, number, chain([first], islice(remaining, samples_per_shard - 1)))
        number += 1
    return finish_set(folder, number)


def _tar_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:06d}.tar"


def _sidecar_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:06d}.json"


def _check_size(tar: Path, expected: int) -> None:
    try:
        size = tar.stat().st_size
    except OSError:
        raise UserError(f"{tar} is missing; {_SET_FILE} lists it") from None
    if size != expected:
        raise UserError(f"{tar} has {size} bytes instead of {expected}: truncated or overwritten")


class ShardSet:
    """A complete shard set, read by sample number.

    Attributes:
        folder: where it lies.
        index: the facts of every sample, an array of INDEX_DTYPE that is mapped into memory.
        sources: names of the data sets that the samples are from.
        fingerprint: hexadecimal hash of the content of all shards in order.
        rejected: how many records could not be used when the set was built.
        plan: what it was built from, if its builder told.
    """

    def __init__(self, folder: Path | str, *, cache_dir: Path | None = None, max_open: int = 16) -> None:
        """Opens the set; contents are not read here, `verify` does that.

        Raises:
            UserError: the folder is no shard set, a file is missing or malformed, or a tar or the index has another
                size than the listing says.
        """
        self.folder = Path(folder)
        self._storage = LocalStorage(self.folder, max_open)
        listing = self._listing()
        shards = listing["shards"]
        self._tars: list[str] = [shard["name"] for shard in shards]
        self._sizes: list[int] = [shard["bytes"] for shard in shards]
        self._hashes: list[str] = [shard["sha256"] for shard in shards]
        self._starts: list[int] = [0, *accumulate(shard["samples"] for shard in shards)]
        self._num_samples = self._starts[-1]
        self._index_facts: dict[str, Any] = listing["index"]
        self.sources: list[str] = listing["sources"]
        self.rejected = sum(shard["rejected"] for shard in shards)
        self.plan: dict[str, Any] | None = listing.get("plan")
        self.fingerprint = hashlib.sha256("".join(self._hashes).encode()).hexdigest()
        for name, size in zip(self._tars, self._sizes, strict=True):
            _check_size(self.folder / name, size)
        _check_size(self.folder / INDEX_FILE, self._index_facts["bytes"])
        self.index = map_index(self._storage.fetched(INDEX_FILE), self._num_samples)

    def _listing(self) -> dict[str, Any]:
        path = self._storage.fetched(_SET_FILE)
        if not path.is_file():
            raise UserError(f"{self.folder} is no complete shard set (it has no {_SET_FILE})")
        listing = read_json(path)
        check_version(listing, path)
        shards = listing.get("shards")
        if not isinstance(shards, list) or not shards or not all(map(_describes_shard, shards)):
            raise UserError(
                f"{path} is malformed: allowed are shards, each of name shard-NNNNNN.tar, bytes, sha256, samples"
                " and rejected"
            )
        if len({shard["name"] for shard in shards}) < len(shards):
            raise UserError(f"{path} is malformed: it names a shard twice")
        if not _describes_rest(listing):
            raise UserError(f"{path} is malformed: allowed are sources, index of bytes and sha256, and a plan or null")
        return listing

    @property
    def num_shards(self) -> int:
        return len(self._tars)

    def samples_of(self, shard: int) -> range:
        """The numbers of the samples in shard number `shard`."""
        return range(self._starts[shard], self._starts[shard + 1])

    def verify(self) -> None:
        """Reads every file whole and compares it with its SHA-256, which finds damage that leaves the size as it was.

        Raises:
            UserError: the first file whose content is not what the set was finished with, or that cannot be read.
        """
        for shard in range(self.num_shards):
            self.verify_shard(shard)
        self.verify_index()

    def verify_shard(self, shard: int) -> None:
        """As `verify`, of one tar."""
        self._verify(self._tars[shard], self._hashes[shard])

    def verify_index(self) -> None:
        """As `verify`, of the index."""
        self._verify(INDEX_FILE, self._index_facts["sha256"])

    def _verify(self, name: str, expected: str) -> None:
        try:
            with open(self.folder / name, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"{self.folder / name} cannot be read ({error.strerror})") from None
        if found != expected:
            raise UserError(
                f"{self.folder / name} has SHA-256 {found[:12]}... instead of {expected[:12]}...: damaged or changed"
            )

    def __len__(self) -> int:
        return self._num_samples

    def key(self, index: int) -> str:
        """The name of sample `index`, which no other of the set has."""
        return bytes(self.index["key"][index]).decode("ascii", "replace")

    def shard_name(self, index: int) -> str:
        """The file name of the tar that holds sample `index`."""
        return self._tars[self.index["shard"][index]]

    def modality(self, index: int) -> Modality:
        """Whether sample `index` is text only, has images, or is a video."""
        return Modality(self.index["modality"][index])

    def frames(self, index: int) -> int:
        """How many pictures sample `index` has."""
        return int(self.index["frames"][index])

    def source(self, index: int) -> str:
        """The data set that sample `index` is from, by its record; empty when that does not say."""
        return self.sources[self.index["source"][index]]

    def read(self, index: int) -> dict[str, bytes]:
        """All members of sample `index` by extension: `{"json": ..., "jpg": ...}`.

        Raises:
            SampleError: the tar has become shorter since the set was opened, cannot be read any more, or does not hold
                what the index says.
        """
        return parse_members(self._read(index, int(self.index["size"][index])), self.key(index))

    def read_record(self, index: int) -> bytes:
        """The json member of sample `index` alone; nothing else is read.

        Raises:
            SampleError: as `read`, or the sample has none.
        """
        size = int(self.index["record_bytes"][index])
        members = parse_members(self._read(index, BLOCK + size), self.key(index)) if size else {}
        if "json" not in members:
            raise SampleError("it has no json member")
        return members["json"]

    def _read(self, index: int, size: int) -> bytes:
        row = self.index[index]
        shard, offset = int(row["shard"]), int(row["offset"])
        if shard >= len(self._tars) or offset + size > self._sizes[shard]:
            raise SampleError(f"the index of {self.folder} names a place outside of its tars")
        try:
            raw = self._storage.read(self._tars[shard], offset, size)
        except OSError as error:
            raise SampleError(f"{self.folder / self._tars[shard]} cannot be read ({error.strerror})") from None
        if len(raw) < size:
            raise SampleError(f"{self.folder / self._tars[shard]} ends too early")
        return raw

    def close(self) -> None:
        """Closes the files; a later read opens them again."""
        self._storage.close()

    def __getstate__(self) -> dict[str, Any]:
        """The map does not travel to another process (it would be copied)."""
        return {**self.__dict__, "index": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.index = map_index(self._storage.fetched(INDEX_FILE), self._num_samples)


def _describes_shard(shard: Any) -> bool:
    return describes_tar(shard) and all(is_count(shard.get(field)) for field in ("samples", "rejected"))


def _describes_rest(listing: dict[str, Any]) -> bool:
    sources, index, plan = (listing.get(field) for field in ("sources", "index", "plan"))
    return (
        isinstance(sources, list)
        and all(isinstance(source, str) for source in sources)
        and isinstance(index, dict)
        and is_count(index.get("bytes"))
        and isinstance(index.get("sha256"), str)
        and isinstance(plan, dict | None)
    )
