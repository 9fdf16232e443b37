"""The plan of a build: which record goes to which place of which shard, frozen before the first shard is written.

    OUT/plan/records.jsonl   every record of every source, in their order: [place, record or null, reason]
    OUT/plan/offsets.npy     where each begins [records] uint64
    OUT/plan/order.npy       the global shuffle [records] uint32
    OUT/plan/plan.json       what it was made from; written last

Shard s holds the records order[s * samples_per_shard : (s + 1) * samples_per_shard]. Every process of a build reads
the same plan, so a shard is the same whoever writes it. While a plan is made, a record takes 16 bytes of memory.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llava_mini.data.conversation import conversation_of, media_names
from llava_mini.data.counts import printable
from llava_mini.data.errors import SampleError
from llava_mini.data.index import is_count, read_sidecar
from llava_mini.data.records import Entry, read_records
from llava_mini.errors import UserError
from llava_mini.files import atomic_path, read_json, reading, write_json, writing

log = logging.getLogger("llava_mini")

_VERSION = 2
_FOLDER, _FILE = "plan", "plan.json"
_ALLOWED = "allowed: a JSON array of objects or JSON Lines"
_RECORDS, _OFFSETS, _ORDER = "records.jsonl", "offsets.npy", "order.npy"


@dataclass(frozen=True)
class Options:
    """What a build makes of its sources.

    Attributes:
        images: Folder of the images that records name.
        videos: Folder of the videos.
        seed: Of the shuffle.
        samples_per_shard: Records of a shard, usable or not.
        resize: Pixels of a stored picture's shorter side at most; None keeps images as they are.
        fps: Frames that are kept of a second of video.
        follow_links: Whether links in the folders may lead out of them.
        strict: Whether the first record that cannot be used ends the build.

    Raises:
        UserError: one of them is impossible.
    """

    images: Path | None = None
    videos: Path | None = None
    seed: int = 0
    samples_per_shard: int = 1000
    resize: int | None = None
    fps: float = 1.0
    follow_links: bool = False
    strict: bool = False

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: allowed are 0 and above")
        if not 1 <= self.samples_per_shard <= 100_000:
            raise UserError(f"--samples-per-shard {self.samples_per_shard}: allowed are 1 to 100000")
        if self.resize is not None and self.resize < 1:
            raise UserError(f"--resize {self.resize}: allowed are 1 pixel and above")
        if not 0 < self.fps <= 1000:
            raise UserError(f"--fps {self.fps}: allowed is more than 0, up to 1000")
        for name, folder in (("--images", self.images), ("--videos", self.videos)):
            if folder is not None and not folder.is_dir():
                raise UserError(f"{name} {folder}: no such folder")

    def decisive(self) -> dict[str, Any]:
        """Those that decide the content of a set, wherever the files lie."""
        return {
            "seed": self.seed,
            "samples_per_shard": self.samples_per_shard,
            "resize": self.resize,
            "fps": self.fps,
        }

    def places(self) -> dict[str, str | bool | None]:
        """Those that say where the files lie."""
        folders = {"images": self.images, "videos": self.videos}
        resolved = {name: None if folder is None else str(folder.resolve()) for name, folder in folders.items()}
        return {**resolved, "follow_links": self.follow_links}


@dataclass(frozen=True)
class Plan:
    """A frozen plan.

    Attributes:
        folder: Where its files lie.
        options: What is made of the records.
        num_records: How many there are, usable or not.
        made_from: What `made_from` tells, which every shard notes.
    """

    folder: Path
    options: Options
    num_records: int
    made_from: dict[str, Any]

    @property
    def num_shards(self) -> int:
        return -(-self.num_records // self.options.samples_per_shard)

    def entries(self, shard: int) -> Iterator[tuple[str, Entry]]:
        """Key and record of every place of a shard.

        Raises:
            UserError: the plan is damaged or cannot be read.
        """
        offsets, order = self._array(_OFFSETS), self._array(_ORDER)
        size, path = self.options.samples_per_shard, self.folder / _RECORDS
        with reading(path):
            spool = open(path, "rb")  # noqa: SIM115 - closed below
        with spool:
            for place, record in enumerate(order[shard * size : (shard + 1) * size]):
                try:
                    with reading(path):
                        spool.seek(int(offsets[record]))
                        entry = Entry(*json.loads(spool.readline()))
                except (ValueError, TypeError) as error:
                    if isinstance(error, UserError):
                        raise
                    raise self._damaged(path) from error
                yield f"{shard:06d}-{place:05d}", entry

    def _array(self, name: str) -> NDArray[Any]:
        path = self.folder / name
        try:
            with reading(path):
                found: NDArray[Any] = np.load(path, mmap_mode="r")
        except UserError:
            raise
        except Exception as error:
            raise self._damaged(path) from error
        if found.shape != (self.num_records,):
            raise self._damaged(path)
        return found

    def _damaged(self, path: Path) -> UserError:
        return UserError(f"{path} is damaged: delete {self.folder} and repeat the command; complete shards are kept")


def describe_sources(sources: Sequence[Path]) -> list[dict[str, Any]]:
    """Name, size and SHA-256 of every source.

    Raises:
        UserError: there is none, one is given twice or cannot be read.
    """
    if not sources:
        raise UserError("no source: give at least one JSON or JSONL file")
    if len({path.resolve() for path in sources}) < len(sources):
        raise UserError(f"a source is given twice: {', '.join(map(str, sources))}")
    described = []
    for path in sources:
        if path.exists() and not path.is_file():  # it is read twice, which a pipe cannot be
            raise UserError(f"source {path} is no regular file; allowed are files of JSON or JSON Lines")
        try:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                described.append({"name": path.name, "bytes": file.tell(), "sha256": digest})
        except OSError as error:
            raise UserError(f"source {path} cannot be read ({error.strerror})") from None
    return described


def made_from(described: list[dict[str, Any]], options: Options) -> dict[str, Any]:
    """What decides the content of a set, as its manifest and its shards keep it; equal wherever the files lay."""
    return {"sources": described, **options.decisive()}


def frozen_plan(out: Path, sources: Sequence[Path], described: list[dict[str, Any]], options: Options) -> Plan:
    """The plan in `out`, made when there is none; the caller holds the folder's lock.

    Shards whose plan and manifest were lost are kept if they were made from the same.

    Args:
        out: Folder of the set.
        sources: Files of records.
        described: What `describe_sources` says of them.
        options: What is made of the records.

    Raises:
        UserError: `out` holds a plan or shards of something else, a source cannot be used, a record names a file whose
            folder is not among the options, or, if strict, one cannot be used. No plan is left then.
    """
    folder, made = out / _FOLDER, made_from(described, options)
    facts = {"version": _VERSION, **made, **options.places()}
    if (folder / _FILE).is_file():
        found = read_json(folder / _FILE)
        check_same(out, found, facts)
        if not is_count(found.get("records")):
            raise UserError(f"{folder / _FILE} does not tell its number of records; delete {folder}")
        return Plan(folder, options, found["records"], made)
    _check_shards(out, made)
    log.info("reading the records of %s", ", ".join(str(path) for path in sources))
    remove_plan(out)  # one that was not complete
    with writing(folder):
        folder.mkdir(parents=True)
    try:
        num_records = _spool(folder, sources, options)
    except UserError:
        remove_plan(out)
        raise
    _save(folder / _ORDER, np.random.default_rng(options.seed).permutation(num_records).astype(np.uint32))
    write_json(folder / _FILE, {**facts, "records": num_records})
    return Plan(folder, options, num_records, made)


def _check_shards(out: Path, made: dict[str, Any]) -> None:
    """Makes sure that shards without a plan are of the one that is to be made."""
    sidecars = sorted(out.glob("shard-*.json"))
    if not sidecars and any(out.glob("shard-*")):
        raise UserError(f"{out} holds shards that do not say what they were made from; delete it or name another")
    for sidecar in sidecars:
        notes = read_sidecar(sidecar).get("notes")
        found = notes.get("plan") if isinstance(notes, dict) else None
        if not isinstance(found, dict):
            raise UserError(f"{sidecar} does not say what it was made from; delete {out} or name another folder")
        check_same(out, found, made)


def remove_plan(out: Path) -> None:
    """Deletes the plan of a complete set, whose manifest says what it was made from."""
    shutil.rmtree(out / _FOLDER, ignore_errors=True)


def check_same(out: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Compares what a folder was made from with what is wanted of it.

    Raises:
        UserError: they differ; the message names the first difference.
    """
    for name, value in wanted.items():
        if found.get(name) == value:
            continue
        if name == "sources":
            difference = _different_sources(found[name], value)
        else:
            difference = f"{name.replace('_', '-')} {found.get(name)}, not {value}"
        raise UserError(f"{out} was built with {difference}; delete it or name another folder")


def _different_sources(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> str:
    names = [", ".join(source["name"] for source in sources) for sources in (found, wanted)]
    if names[0] != names[1]:
        return f"sources {names[0]}, not {names[1]}"
    old, new = next((old, new) for old, new in zip(found, wanted, strict=True) if old != new)
    return f"another {new['name']} (SHA-256 {old['sha256'][:12]}..., now {new['sha256'][:12]}...)"


def _spool(folder: Path, sources: Sequence[Path], options: Options) -> int:
    """Copies the records of all sources into one file and notes where its lines begin; the number of records."""
    offsets = array("Q")
    with atomic_path(folder / _RECORDS) as temporary, open(temporary, "wb") as spool:
        for path in sources:
            before, usable, first_fault = len(offsets), 0, ""
            for entry in read_records(path):
                _check_folders(entry, options)
                if options.strict:
                    _check_usable(entry)
                line, fault = _line(entry)
                usable += not fault
                first_fault = first_fault or (fault and f"{entry.place}: {fault}")
                offsets.append(spool.tell())
                spool.write(line)
            if first_fault and not usable:
                raise UserError(f"{path} holds no record ({first_fault}); {_ALLOWED}")
            log.info("%s: %d records", path.name, len(offsets) - before)
    if not offsets:
        raise UserError(f"{', '.join(map(str, sources))} holds no record (it is empty); {_ALLOWED}")
    _save(folder / _OFFSETS, np.frombuffer(offsets, np.uint64))
    return len(offsets)


def _check_folders(entry: Entry, options: Options) -> None:
    """A record of files whose folder was not given is the command's fault: all such records would be rejected."""
    try:
        names, is_video = media_names(entry.record or {})
    except SampleError:  # its own fault, by which its shard rejects it
        return
    if names and (options.videos if is_video else options.images) is None:
        what, option = ("a video", "--videos") if is_video else ("an image", "--images")
        raise UserError(f"{entry.place} names {what} ({printable(names[0])}): {option} must name the folder of these")


def _check_usable(entry: Entry) -> None:
    """Ends a strict build before its first shard, where what is wrong stands in the record."""
    try:
        if entry.record is None:
            raise SampleError(entry.reason)
        conversation_of(entry.record).check_files(stored=0)
    except SampleError as error:
        raise UserError(f"--strict: {printable(f'{entry.name}: {error}')}") from None


def _line(entry: Entry) -> tuple[bytes, str]:
    """An entry as a line of the spool, and why it is unusable: also when it holds what no JSON file can."""
    try:
        values = [entry.place, entry.record, entry.reason]
        content = json.dumps(values, ensure_ascii=False, allow_nan=False)
        return content.encode() + b"\n", entry.reason
    except (ValueError, RecursionError) as error:  # an infinite number, half a character, endless nesting
        return _line(Entry(entry.place, None, f"not valid JSON ({error})"))


def _save(path: Path, values: NDArray[Any]) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, values)
