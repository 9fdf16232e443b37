"""The plan of a build: which record goes to which position of which shard, frozen before the first shard is written.

    OUT/plan/records.jsonl   every record of every source, in source order: [place, record or null, reason]
    OUT/plan/offsets.npy     byte offset of each line [records] uint64
    OUT/plan/order.npy       the global shuffle [records] uint32
    OUT/plan/plan.json       what the plan was made from; written last

Shard s contains the records order[s * samples_per_shard : (s + 1) * samples_per_shard]. Every process of a build reads
the same plan, so a shard is the same whichever process writes it. Making a plan takes 16 bytes of memory per record.
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

from llava_mini.data.building.records import Entry, read_records
from llava_mini.data.format.index import is_count, read_sidecar
from llava_mini.data.inspection.stats import printable
from llava_mini.data.text.conversation import conversation_of
from llava_mini.data.text.forms import is_url, media_names
from llava_mini.errors import SampleError, UserError, refused
from llava_mini.files import atomic_path, read_json, reading, write_json, writing
from llava_mini.media.images import WHITE, Color

log = logging.getLogger("llava_mini")

_VERSION = 2
_FOLDER, _FILE = "plan", "plan.json"
_BEFORE = {"background": list(WHITE)}  # of what sets do not say
_ALLOWED = "allowed: a JSON array of objects or JSON Lines"
_RECORDS, _OFFSETS, _ORDER = "records.jsonl", "offsets.npy", "order.npy"


@dataclass(frozen=True)
class Options:
    """Options of a build, as `run.build_set` describes them; the folder `fetch` is made.

    Raises:
        UserError: an option is invalid.
    """

    images: Path | None = None
    videos: Path | None = None
    seed: int = 0
    samples_per_shard: int = 1000
    resize: int | None = None
    fps: float = 1.0
    follow_links: bool = False
    strict: bool = False
    fetch: Path | None = None
    background: Color = WHITE

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise refused("seed", self.seed, allowed="0 and above")
        if not 1 <= self.samples_per_shard <= 100_000:
            raise refused("samples_per_shard", self.samples_per_shard, allowed="1 to 100000")
        if self.resize is not None and self.resize < 1:
            raise refused("resize", self.resize, allowed="1 pixel and above")
        if not 0 < self.fps <= 1000:
            raise refused("fps", self.fps, only="more than 0, up to 1000")
        for name, folder in (("images", self.images), ("videos", self.videos)):
            if folder is not None and not folder.is_dir():
                raise refused(name, folder, "no such folder")
        if self.fetch is not None:
            with writing(self.fetch):
                self.fetch.mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True)
class Plan:
    """A frozen plan of `num_records` records, usable or not; every shard's sidecar notes what it was made from."""

    folder: Path
    options: Options
    num_records: int
    made_from: dict[str, Any]

    @property
    def num_shards(self) -> int:
        return -(-self.num_records // self.options.samples_per_shard)

    def num_records_of(self, shard: int) -> int:
        """Return the number of records of a shard; the last may have fewer than the others."""
        each = self.options.samples_per_shard
        return min(each, self.num_records - shard * each)

    def entries(self, shard: int) -> Iterator[tuple[str, Entry]]:
        """Yield the key and the record of every position of a shard.

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
    """Return the name, size and SHA-256 of every source.

    Raises:
        UserError: no source is given, or a source is given twice or cannot be read.
    """
    if not sources:
        raise UserError("no source: give at least one JSON or JSONL file", key="sources", value=sources)
    if len({path.resolve() for path in sources}) < len(sources):
        raise UserError(f"a source is given twice: {', '.join(map(str, sources))}", key="sources", value=sources)
    described = []
    for path in sources:
        if path.exists() and not path.is_file():  # a source is read twice, which is impossible with a pipe
            raise refused("source", path, "no regular file", allowed="files of JSON or JSON Lines")
        with reading(path), open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            described.append({"name": path.name, "bytes": file.tell(), "sha256": digest})
    return described


def made_from(described: list[dict[str, Any]], options: Options) -> dict[str, Any]:
    """Return what decides the content of a set, wherever the files are, as its manifest and shards store it."""
    decisive = ("seed", "samples_per_shard", "resize", "fps")
    made = {"sources": described, **{name: getattr(options, name) for name in decisive}}
    if options.background != WHITE:  # which it was before there was a choice
        made["background"] = list(options.background)
    return made


def frozen_plan(out: Path, sources: Sequence[Path], described: list[dict[str, Any]], options: Options) -> Plan:
    """Return the plan in `out`, which is made if it does not exist; the caller holds the folder's lock.

    Shards whose plan and manifest were lost are kept if they were made from the same sources and options. `described`
    is what `describe_sources` returns for the sources.

    Raises:
        UserError: `out` contains a plan or shards made from something else, a source cannot be used, a record names a
            file whose folder is not among the options, or, if strict, a record cannot be used. A plan whose making
            failed is removed.
    """
    folder, made = out / _FOLDER, made_from(described, options)
    places = {"images": options.images, "videos": options.videos, "fetch": options.fetch}
    resolved = {name: None if place is None else str(place.resolve()) for name, place in places.items()}
    facts = {"version": _VERSION, **made, **resolved, "follow_links": options.follow_links}
    if (folder / _FILE).is_file():
        found = read_json(folder / _FILE)
        check_same(out, found, facts)
        if not is_count(found.get("records")):
            raise UserError(f"{folder / _FILE} does not tell its number of records; delete {folder}")
        return Plan(folder, options, found["records"], made)
    _check_shards(out, made)
    log.info("reading the records of %s", ", ".join(str(path) for path in sources))
    remove_plan(out)  # an incomplete plan
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
    """Check that shards without a plan belong to the plan that is about to be made."""
    sidecars = sorted(out.glob("shard-*.json"))
    if not sidecars and any(out.glob("shard-*")):
        raise UserError(f"{out} contains shards that do not say what they were made from; delete it or name another")
    for sidecar in sidecars:
        notes = read_sidecar(sidecar).get("notes")
        found = notes.get("plan") if isinstance(notes, dict) else None
        if not isinstance(found, dict):
            raise UserError(f"{sidecar} does not say what it was made from; delete {out} or name another folder")
        check_same(out, found, made)


def remove_plan(out: Path) -> None:
    """Delete the plan in `out`; the manifest of a complete set says what the set was made from."""
    shutil.rmtree(out / _FOLDER, ignore_errors=True)


def check_same(out: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Check that a folder was made from what the caller wants.

    Raises:
        UserError: the two differ; the message names the first difference.
    """
    for name, value in {**_BEFORE, **wanted}.items():
        if (before := found.get(name, _BEFORE.get(name))) == value:
            continue
        if name == "sources":
            difference = _different_sources(found[name], value)
        else:
            difference = f"{name.replace('_', '-')} {before}, not {value}"
        raise UserError(f"{out} was built with {difference}; delete it or name another folder")


def _different_sources(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> str:
    names = [", ".join(source["name"] for source in sources) for sources in (found, wanted)]
    if names[0] != names[1]:
        return f"sources {names[0]}, not {names[1]}"
    old, new = next((old, new) for old, new in zip(found, wanted, strict=True) if old != new)
    return f"another {new['name']} (SHA-256 {old['sha256'][:12]}..., now {new['sha256'][:12]}...)"


def _spool(folder: Path, sources: Sequence[Path], options: Options) -> int:
    """Copy the records of all sources into one file, save its line offsets, and return the number of records."""
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
                raise UserError(f"{path} contains no record ({first_fault}); {_ALLOWED}")
            log.info("%s: %d records", path.name, len(offsets) - before)
    if not offsets:
        raise UserError(f"{', '.join(map(str, sources))} contains no record (it is empty); {_ALLOWED}")
    _save(folder / _OFFSETS, np.frombuffer(offsets, np.uint64))
    return len(offsets)


def _check_folders(entry: Entry, options: Options) -> None:
    """Fail if a record names a file but the command gave no folder for it: all such records would be rejected."""
    try:
        names, is_video = media_names(entry.record or {})
    except SampleError:  # a fault of the record itself; its shard rejects it
        return
    files = [name for name in names if not is_url(name)]
    if files and (options.videos if is_video else options.images) is None:
        what, option = ("a video", "videos") if is_video else ("an image", "images")
        why = f"{entry.place} names {what} ({printable(files[0])}): {option} must name the folder of these"
        raise UserError(why, key=option)


def _check_usable(entry: Entry) -> None:
    """End a strict build before its first shard if the fault can be found in the record alone."""
    try:
        if entry.record is None:
            raise SampleError(entry.reason)
        conversation_of(entry.record).check_files(stored=0)
    except SampleError as error:
        raise UserError(f"strict: {printable(f'{entry.name}: {error}')}", key="strict") from None


def _line(entry: Entry) -> tuple[bytes, str]:
    """Return an entry as a line of the spool, and why it is unusable (a value that JSON cannot express is a reason)."""
    try:
        values = [entry.place, entry.record, entry.reason]
        content = json.dumps(values, ensure_ascii=False, allow_nan=False)
        return content.encode() + b"\n", entry.reason
    except (ValueError, RecursionError) as error:  # an infinite number, a lone surrogate, too deep nesting
        return _line(Entry(entry.place, None, f"not valid JSON ({error})"))


def _save(path: Path, values: NDArray[Any]) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, values)
