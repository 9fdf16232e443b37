"""Samples in WebDataset shards: standard tar files, each with an index beside it that says where every member lies.

With the index a sample is read by its number with one `pread`, so any order costs the same, and the tars stay readable
by every WebDataset tool. A shard set is a folder:

    shard-000000.tar         000123.json, 000123.png, 000124.json, ...
    shard-000000.index.json  {"samples": [["000123", {"json": [512, 801], "png": [1536, 9120]}], ...]}
    shards.json              names, sizes and SHA-256 of the tars; written last, so a set that has it is complete

Tars are deterministic: fixed times and owners, members sorted by name.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from llava_mini.data.errors import SampleError
from llava_mini.errors import UserError
from llava_mini.files import atomic_path, write_json

FORMAT_VERSION = 1
_SET_FILE = "shards.json"
_KEY = re.compile(r"[A-Za-z0-9_\-]+")
_TAR = re.compile(r"shard-\d{6,9}\.tar")  # a plain name: what a listing says never leads out of its folder
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_OPEN_FILES = 16

Members = Mapping[str, bytes]


def write_shards(samples: Iterable[tuple[str, Members]], folder: Path, samples_per_shard: int = 1000) -> ShardSet:
    """Writes (key, {extension: content}) samples as a shard set in `folder`.

    Raises:
        UserError: the folder holds a shard set already, there is no sample, or a key is repeated or unusable as a name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / _SET_FILE).exists():
        raise UserError(f"{folder} already holds a shard set; delete it or name another folder")
    for stale in folder.glob("shard-*"):  # of a build that was interrupted
        stale.unlink()
    remaining = iter(samples)
    seen: set[str] = set()
    shards: list[dict[str, Any]] = []
    while chunk := list(islice(remaining, samples_per_shard)):
        for key, _ in chunk:
            if not _KEY.fullmatch(key) or key in seen:
                raise UserError(f"sample key {key!r} is a repetition or has characters other than A-Z a-z 0-9 _ -")
            seen.add(key)
        shards.append(_write_shard(folder, f"shard-{len(shards):06d}", chunk))
    if not shards:
        raise UserError(f"no sample to write to {folder}")
    write_json(folder / _SET_FILE, {"version": FORMAT_VERSION, "shards": shards})
    return ShardSet(folder)


def _write_shard(folder: Path, name: str, chunk: list[tuple[str, Members]]) -> dict[str, Any]:
    index = []
    with atomic_path(folder / f"{name}.tar") as temporary:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for key, members in chunk:
                places = {}
                for extension, content in sorted(members.items()):
                    info = tarfile.TarInfo(f"{key}.{extension}")  # mtime 0, owner 0, mode 0644
                    info.size = len(content)
                    places[extension] = [tar.offset + tarfile.BLOCKSIZE, len(content)]
                    tar.addfile(info, io.BytesIO(content))
                index.append([key, places])
        with open(temporary, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
    shard = {"name": f"{name}.tar", "bytes": size, "sha256": digest, "samples": len(chunk)}
    write_json(folder / f"{name}.index.json", {**shard, "version": FORMAT_VERSION, "samples": index})
    return shard


class ShardSet:
    """A complete shard set, read by sample number.

    Attributes:
        folder: where it lies.
        keys: the samples' keys in the order of the shards.
        fingerprint: hexadecimal hash of the content of all shards in order.
    """

    def __init__(self, folder: Path | str) -> None:
        """Opens the indexes.

        Contents are not read here: `verify` does that.

        Raises:
            UserError: the folder is no shard set, a file is missing or malformed, or a tar and its index do not belong
                together.
        """
        self.folder = Path(folder)
        self.keys: list[str] = []
        self._places: list[tuple[int, dict[str, list[int]]]] = []
        self._tars: list[Path] = []
        self._hashes: list[str] = []
        self._open: OrderedDict[int, int] = OrderedDict()
        for shard in self._listed_shards():
            self._add(shard)
        if len(set(self.keys)) < len(self.keys):
            raise UserError(f"{self.folder} has several samples of one key")
        self.fingerprint = hashlib.sha256("".join(self._hashes).encode()).hexdigest()

    def verify(self) -> None:
        """Reads every tar whole and compares it with its SHA-256, which finds damage that leaves the size as it was.

        Raises:
            UserError: the first tar whose content is not what its index was written for, or that cannot be read.
        """
        for tar, expected in zip(self._tars, self._hashes, strict=True):
            try:
                with open(tar, "rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise UserError(f"{tar} cannot be read ({error.strerror})") from None
            if found != expected:
                raise UserError(f"{tar} has SHA-256 {found[:12]}... instead of {expected[:12]}...: damaged or changed")

    def _listed_shards(self) -> list[dict[str, Any]]:
        listing = self.folder / _SET_FILE
        if not listing.is_file():
            raise UserError(f"{self.folder} is no complete shard set (it has no {_SET_FILE})")
        content = _read_json(listing)
        if content.get("version") != FORMAT_VERSION:
            raise UserError(f"{listing} has format version {content.get('version')}; allowed: {FORMAT_VERSION}")
        shards = content.get("shards")
        if not isinstance(shards, list) or not shards or not all(_describes_shard(shard) for shard in shards):
            raise UserError(
                f"{listing} is malformed: allowed are shards, each of name shard-NNNNNN.tar, bytes, sha256 and samples"
            )
        if len({shard["name"] for shard in shards}) < len(shards):
            raise UserError(f"{listing} is malformed: it names a shard twice")
        return shards

    def _add(self, shard: dict[str, Any]) -> None:
        tar = self.folder / shard["name"]
        sidecar = tar.with_suffix(".index.json")
        for path in (tar, sidecar):
            if not path.is_file():
                raise UserError(f"{path} is missing; {self.folder / _SET_FILE} lists it")
        if (size := tar.stat().st_size) != shard["bytes"]:
            raise UserError(f"{tar} has {size} bytes instead of {shard['bytes']}: truncated or overwritten")
        index = _read_json(sidecar)
        samples = index.get("samples")
        if not isinstance(samples, list) or index.get("sha256") != shard["sha256"] or len(samples) != shard["samples"]:
            raise UserError(f"{sidecar} is not the index of {tar}: sha256 or samples are not those in {_SET_FILE}")
        for number, sample in enumerate(samples):
            if not _describes_sample(sample, size):
                raise UserError(f"{sidecar} is malformed: samples[{number}] names no place within the {size} bytes")
            self.keys.append(sample[0])
            self._places.append((len(self._tars), sample[1]))
        self._tars.append(tar)
        self._hashes.append(shard["sha256"])

    def __len__(self) -> int:
        return len(self.keys)

    def shard_name(self, index: int) -> str:
        """The file name of the tar that holds sample `index`."""
        return self._tars[self._places[index][0]].name

    def extensions(self, index: int) -> set[str]:
        """The members that sample `index` has."""
        return set(self._places[index][1])

    def read(self, index: int, extensions: Iterable[str] | None = None) -> dict[str, bytes]:
        """The members of sample `index` by extension (`{"png": ..., "json": ...}`), all or only those named.

        Raises:
            SampleError: the tar has become shorter since the set was opened, or cannot be read any more.
        """
        shard, places = self._places[index]
        wanted = places if extensions is None else [name for name in extensions if name in places]
        try:
            descriptor = self._descriptor(shard)
            members = {name: os.pread(descriptor, places[name][1], places[name][0]) for name in wanted}
        except OSError as error:
            raise SampleError(f"{self._tars[shard]} cannot be read ({error.strerror})") from None
        if any(len(content) != places[name][1] for name, content in members.items()):
            raise SampleError(f"{self._tars[shard]} ends too early")
        return members

    def _descriptor(self, shard: int) -> int:
        """An open file of a shard; the one used longest ago is closed when there are too many."""
        if shard not in self._open:
            if len(self._open) >= _MAX_OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
            self._open[shard] = os.open(self._tars[shard], os.O_RDONLY)
        self._open.move_to_end(shard)
        return self._open[shard]

    def close(self) -> None:
        """Closes the files; a later read opens them again."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """File descriptors do not travel to another process."""
        return {**self.__dict__, "_open": OrderedDict()}


def _describes_shard(shard: Any) -> bool:
    """Whether an entry of a listing has all that is read of it, in the right types and with a plain name."""
    return (
        isinstance(shard, dict)
        and isinstance(name := shard.get("name"), str)
        and _TAR.fullmatch(name) is not None
        and isinstance(sha256 := shard.get("sha256"), str)
        and _SHA256.fullmatch(sha256) is not None
        and all(_is_count(shard.get(field)) for field in ("bytes", "samples"))
    )


def _describes_sample(sample: Any, size: int) -> bool:
    """Whether an entry of an index is a key and places of members, [offset, length], within a tar of `size` bytes."""
    if not (isinstance(sample, list) and len(sample) == 2):
        return False
    key, places = sample
    if not (isinstance(key, str) and _KEY.fullmatch(key) and isinstance(places, dict)):
        return False
    return all(
        isinstance(place, list) and len(place) == 2 and all(map(_is_count, place)) and sum(place) <= size
        for place in places.values()
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0  # JSON's true is no count


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return content
