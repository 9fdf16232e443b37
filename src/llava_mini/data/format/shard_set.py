"""Reads a complete shard set by sample number: every sample is one ranged read, wherever the folder is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from llava_mini.data.format.index import (
    INDEX_FILE,
    SET_FILE,
    SHA256,
    Modality,
    check_version,
    describes_tar,
    index_rows,
    is_count,
    map_index,
    parse_sidecar,
)
from llava_mini.data.format.remote import RemoteStorage
from llava_mini.data.format.storage import LocalStorage, Storage
from llava_mini.data.format.ustar import BLOCK, parse_members
from llava_mini.errors import SampleError, UserError
from llava_mini.files import MOUNT_GONE, parse_object


class ShardSet:
    """A complete shard set, read by sample number.

    Attributes:
        folder: Folder of the set, a path or a URL.
        index: Facts about every sample, a memory-mapped array of INDEX_DTYPE.
        sources: Names of the datasets that the samples are from.
        fingerprint: Hexadecimal hash of the content of all shards in order.
        rejected: Number of records that could not be used when the set was built.
        plan: Description of what the set was built from, if its builder gave one.
    """

    def __init__(self, folder: Path | str, *, cache_dir: Path | None = None) -> None:
        """Open the set in a folder or at an s3://, http:// or https:// URL; `verify` reads the contents.

        Files fetched from a URL are in `cache_dir`, shared by processes and kept for later runs.

        Raises:
            UserError: The folder is not a shard set or cannot be reached, a file is missing or malformed, or a tar or
                the index has another size than the listing says.
        """
        self._storage: Storage
        self.folder: Path | str
        if "://" in str(folder):
            self._storage = RemoteStorage(str(folder), cache_dir)
            self.folder = self._storage.where("").rstrip("/")
        else:
            self.folder = Path(folder)
            self._storage = LocalStorage(self.folder)
        listing = self._listing()
        shards = listing["shards"]
        self._tars: list[str] = [shard["name"] for shard in shards]
        self._sizes: list[int] = [shard["bytes"] for shard in shards]
        self._hashes: list[str] = [shard["sha256"] for shard in shards]
        self._starts: list[int] = [0, *accumulate(shard["samples"] for shard in shards)]
        self._num_samples = self._starts[-1]
        self._index_facts: dict[str, Any] = listing["index"]
        self.sources: list[str] = listing["sources"]
        self._rejected: list[int] = [shard["rejected"] for shard in shards]
        self.rejected = sum(self._rejected)
        self.plan: dict[str, Any] | None = listing.get("plan")
        self.fingerprint = hashlib.sha256("".join(self._hashes).encode()).hexdigest()
        for name, size in zip(self._tars, self._sizes, strict=True):
            self._storage.check(name, size)
        self._index_path = self._storage.mapped(INDEX_FILE, listing["index"]["bytes"], listing["index"]["sha256"])
        self.index = map_index(self._index_path, self._num_samples)

    def _listing(self) -> dict[str, Any]:
        raw, path = self._storage.listing(SET_FILE), self._storage.where(SET_FILE)
        if raw is None:
            raise UserError(f"{self.folder} is no complete shard set (it has no {SET_FILE})")
        listing = parse_object(raw, path)
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
        """Return the numbers of the samples in shard number `shard`."""
        return range(self._starts[shard], self._starts[shard + 1])

    def verify(self) -> None:
        """Compare every file that samples are read from with its SHA-256: finds damage that does not change the size.

        Raises:
            UserError: A file's content is not what the set was finished with, or the file cannot be read; the message
                names the first such file.
        """
        for shard in range(self.num_shards):
            self.verify_shard(shard)
        self.verify_index()

    def verify_shard(self, shard: int) -> None:
        """Read one tar and compare it with its SHA-256, see `verify`."""
        self._verify(self._tars[shard], self._sizes[shard], self._hashes[shard])

    def verify_sidecar(self, shard: int) -> None:
        """Read and check the sidecar of one tar: no sample needs it, but it alone names the rejected records.

        Raises:
            UserError: The sidecar is missing, malformed, or does not agree with the listing and the index.
        """
        tar = self._tars[shard]
        name = str(Path(tar).with_suffix(".json"))
        where = self._storage.where(name)
        raw = self._storage.content(name)
        if raw is None:
            raise UserError(f"{where} is missing (training does not need it, but it names what was rejected)")
        sidecar = parse_sidecar(raw, where, tar)
        rows = index_rows(sidecar, shard, {source: number for number, source in enumerate(self.sources)})
        own = self.samples_of(shard)
        facts = (sidecar["bytes"], sidecar["sha256"], len(sidecar["rejected"]))
        if facts != (self._sizes[shard], self._hashes[shard], self._rejected[shard]) or not np.array_equal(
            rows, self.index[own.start : own.stop]
        ):
            raise UserError(f"{where} does not agree with {SET_FILE} and {INDEX_FILE}: damaged or changed")

    def verify_index(self) -> None:
        """Read the index and compare it with its SHA-256, see `verify`."""
        self._verify(INDEX_FILE, self._index_facts["bytes"], self._index_facts["sha256"])

    def _verify(self, name: str, size: int, expected: str) -> None:
        where = self._storage.where(name)
        try:
            found = self._storage.sha256(name, size)
        except OSError as error:
            raise UserError(f"{where} cannot be read ({error.strerror or error})") from None
        if found != expected:
            raise UserError(f"{where} has SHA-256 {found[:12]}... instead of {expected[:12]}...: damaged or changed")

    def __len__(self) -> int:
        return self._num_samples

    def key(self, index: int) -> str:
        """Return the key of sample `index`, which is unique in the set."""
        return bytes(self.index["key"][index]).decode("ascii", "replace")

    def shard_name(self, index: int) -> str:
        """Return the file name of the tar that contains sample `index`."""
        with self._agreeing():
            return self._tars[self.index["shard"][index]]

    def modality(self, index: int) -> Modality:
        """Return whether sample `index` is text only, has images, or is a video."""
        with self._agreeing():
            return Modality(self.index["modality"][index])

    def frames(self, index: int) -> int:
        """Return the number of images or video frames of sample `index`."""
        return int(self.index["frames"][index])

    def source(self, index: int) -> str:
        """Return the dataset that sample `index` is from, as named by its record; empty if the record names none."""
        with self._agreeing():
            return self.sources[self.index["source"][index]]

    @contextmanager
    def _agreeing(self) -> Iterator[None]:
        """Convert lookup errors of a damaged index to UserError; checking it in advance would read all of it."""
        try:
            yield
        except (IndexError, ValueError) as error:
            raise UserError(f"{self._index_path} does not agree with {SET_FILE}: damaged or changed") from error

    def read(self, index: int) -> dict[str, bytes]:
        """Return all members of sample `index` by extension: `{"json": ..., "jpg": ...}`.

        Raises:
            SampleError: The tar has become shorter since the set was opened, can no longer be read, or does not contain
                what the index says.
            UserError: The disk or mount with the tar is gone.
        """
        return parse_members(self._read(index, int(self.index["size"][index])), self.key(index))

    def read_record(self, index: int) -> bytes:
        """Return the json member of sample `index` alone; nothing else is read.

        Raises:
            SampleError: The sample cannot be read, see `read`, or it has no json member.
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
            if error.errno in MOUNT_GONE:  # not a fault of a sample, so the run must not skip it and continue
                where = self._storage.where(self._tars[shard])
                raise UserError(f"{where} cannot be read ({error.strerror}); repeat the command when it can") from None
            raise SampleError(
                f"{self._storage.where(self._tars[shard])} cannot be read ({error.strerror or error})"
            ) from None
        if len(raw) < size:
            raise SampleError(f"{self._storage.where(self._tars[shard])} ends too early")
        return raw

    def close(self) -> None:
        """Closes the files; a later read opens them again."""
        self._storage.close()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the memory map, which is not passed to another process (it would be copied)."""
        return {**self.__dict__, "index": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.index = map_index(self._index_path, self._num_samples)


def _describes_shard(shard: Any) -> bool:
    return describes_tar(shard) and all(is_count(shard.get(field)) for field in ("samples", "rejected"))


def _describes_rest(listing: dict[str, Any]) -> bool:
    sources, index, plan = (listing.get(field) for field in ("sources", "index", "plan"))
    return (
        isinstance(sources, list)
        and all(isinstance(source, str) for source in sources)
        and isinstance(index, dict)
        and is_count(index.get("bytes"))
        and isinstance(sha256 := index.get("sha256"), str)
        and SHA256.fullmatch(sha256) is not None
        and isinstance(plan, dict | None)
    )
