"""Index of facts about every sample, known without reading it: its place, modality, frames, text length and source.

The facts are found once, when a shard is written, and stored in its sidecar. The sidecars of a set are then
consolidated in one array. It is memory-mapped, so three million samples cost no time to open and no memory of a
process.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llava_mini.data.format.ustar import BLOCK
from llava_mini.data.text.forms import media_names, texts_of
from llava_mini.errors import SampleError, UserError
from llava_mini.files import atomic_path, parse_object, reading

FORMAT_VERSION = 2
INDEX_FILE, SET_FILE = "index.npy", "shards.json"
TAR = re.compile(r"shard-\d{6,9}\.tar")  # plain names only: a listing never leads out of its folder
KEY = re.compile(r"[A-Za-z0-9_\-]{1,32}")
SHA256 = re.compile(r"[0-9a-f]{64}")

# offset and size are of the whole sample in its tar, record_bytes of its json member alone
INDEX_DTYPE = np.dtype(
    [
        ("key", "S32"),
        ("shard", "<u4"),
        ("offset", "<u8"),
        ("size", "<u4"),
        ("record_bytes", "<u4"),
        ("modality", "u1"),
        ("frames", "<u4"),
        ("text_length", "<u4"),
        ("source", "<u2"),
    ]
)
# A sample in a sidecar: key, offset, size, record_bytes, modality, frames, text_length, name of the source
_ROW_TYPES = [str, int, int, int, int, int, int, str]
_MOST_SOURCES = np.iinfo(INDEX_DTYPE["source"]).max + 1

_PICTURE = re.compile(r"(?:(\d{6})\.)?(?:jpg|jpeg|png|webp)")

Members = Mapping[str, bytes]  # extension -> content


class Modality(IntEnum):
    """Modality of a sample; several images are still `IMAGE`."""

    TEXT = 0
    IMAGE = 1
    VIDEO = 2


def image_names(members: Iterable[str]) -> list[str]:
    """Return the extensions that are images, in order: one plain (`jpg`), or numbered from 000000 on (`000000.jpg`).

    Raises:
        SampleError: The extensions of the images are neither.
    """
    numbers = {name: found[1] for name in members if (found := _PICTURE.fullmatch(name))}
    names = sorted(numbers)
    if names and [numbers[name] for name in names] not in ([None], [f"{place:06d}" for place in range(len(names))]):
        raise SampleError(f"images {', '.join(names[:4])} are neither one nor numbered from 000000 on")
    return names


class Facts(NamedTuple):
    """Facts about a sample's content, as they follow its key, offset and size in a sidecar."""

    record_bytes: int
    modality: Modality
    frames: int
    text_length: int
    source: str


def facts_of(members: Members) -> Facts:
    """Return the facts of a sample.

    A record that cannot be parsed has no text and no source; its error is reported when it is read.

    Raises:
        SampleError: The images are neither a single one nor numbered.
    """
    frames = len(image_names(members))
    try:
        record = json.loads(members.get("json", b""))
    except (ValueError, RecursionError):
        record = None
    record = record if isinstance(record, dict) else {}
    modality = Modality.TEXT if not frames else Modality.VIDEO if _names_video(record) else Modality.IMAGE
    return Facts(len(members.get("json", b"")), modality, frames, sum(map(len, texts_of(record))), _source(record))


def _names_video(record: dict[str, Any]) -> bool:
    try:
        return media_names(record)[1]
    except SampleError:
        return False


def _source(record: dict[str, Any]) -> str:
    """Return the name of a record's dataset; a number is returned as its digits."""
    source = record.get("source")
    return str(source) if isinstance(source, str) or type(source) is int else ""


def read_sidecar(path: Path) -> dict[str, Any]:
    """Read and check the sidecar of a tar.

    Raises:
        UserError: The sidecar is missing or malformed, or describes another tar.
    """
    with reading(path):
        raw = path.read_bytes()
    return parse_sidecar(raw, str(path), path.with_suffix(".tar").name)


def parse_sidecar(raw: bytes, where: str, tar: str) -> dict[str, Any]:
    """Parse and check the content of the file `where`, the sidecar of `tar`.

    Raises:
        UserError: The sidecar is malformed, or describes another tar.
    """
    content = parse_object(raw, where)
    check_version(content, where)
    if not describes_tar(content) or content["name"] != tar or not isinstance(content.get("rejected"), list):
        raise UserError(f"{where} is malformed: it does not describe {tar}")
    if not isinstance(content.get("samples"), list):
        raise UserError(f"{where} is malformed: its samples are no list")
    for number, row in enumerate(content["samples"]):
        if not isinstance(row, list) or [type(value) for value in row] != _ROW_TYPES or not KEY.fullmatch(row[0]):
            raise UserError(f"{where} is malformed: samples[{number}] is not a key, six numbers and a source")
    return content


def index_rows(sidecar: dict[str, Any], shard: int, sources: dict[str, int]) -> NDArray[np.void]:
    """Return the samples of a checked sidecar as part of the index; names of new sources are added to `sources`.

    Raises:
        UserError: A sample does not begin where the one before it ends, or there are too many sources.
    """
    try:
        rows = np.array(
            [
                (key, shard, *places, sources.setdefault(source, len(sources)))
                for key, *places, source in sidecar["samples"]
            ],
            INDEX_DTYPE,
        )
    except OverflowError:
        if len(sources) > _MOST_SOURCES:
            raise UserError(
                f"records name more than {_MOST_SOURCES} sources; `source` is the name of a data set"
            ) from None
        raise UserError(f"the sidecar of {sidecar['name']} is malformed: a number is out of bounds") from None
    ends = rows["offset"] + rows["size"]
    contiguous = not len(rows) or (
        rows["offset"][0] == 0 and (ends[:-1] == rows["offset"][1:]).all() and ends[-1] <= sidecar["bytes"]
    )
    records_inside = (rows["record_bytes"].astype(np.int64) + BLOCK <= rows["size"]).all()
    if not contiguous or not records_inside or (rows["modality"] > max(Modality)).any():
        raise UserError(f"the sidecar of {sidecar['name']} is malformed: it names places outside of the tar's samples")
    return rows


def write_index(folder: Path, parts: list[NDArray[np.void]]) -> dict[str, Any]:
    """Write the parts as one array and return its size and hash; the parts are never in memory twice."""
    with atomic_path(folder / INDEX_FILE) as temporary:
        with open(temporary, "wb") as file:
            described = {
                "descr": np.lib.format.dtype_to_descr(INDEX_DTYPE),
                "fortran_order": False,
                "shape": (sum(map(len, parts)),),
            }
            np.lib.format.write_array_header_1_0(file, described)
            for part in parts:
                file.write(part.tobytes())
        with open(temporary, "rb") as file:
            return {"bytes": temporary.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def map_index(path: Path, num_samples: int) -> NDArray[np.void]:
    """Memory-map the index of a set, as a plain array, which is faster to read by number than a memmap.

    Raises:
        UserError: The file is not an array of `num_samples` entries of INDEX_DTYPE.
    """
    try:
        index: NDArray[np.void] = np.load(path, mmap_mode="r")
    except Exception as error:  # noqa: BLE001  for a damaged header numpy raises what its parser raises
        raise UserError(f"{path} cannot be read ({error})") from None
    if index.dtype != INDEX_DTYPE or index.shape != (num_samples,):
        raise UserError(f"{path} is no index of {num_samples} samples: {index.dtype} of shape {index.shape}")
    return np.asarray(index)


def describes_tar(content: Any) -> bool:
    """Whether an entry of a listing has all fields that are read of a tar, with the right types and a plain name."""
    return (
        isinstance(content, dict)
        and isinstance(name := content.get("name"), str)
        and TAR.fullmatch(name) is not None
        and isinstance(sha256 := content.get("sha256"), str)
        and SHA256.fullmatch(sha256) is not None
        and is_count(content.get("bytes"))
    )


def is_count(value: Any) -> bool:
    """Whether a value of a JSON file is a whole number of 0 or more."""
    return type(value) is int and value >= 0  # JSON's true is not a count


def check_version(content: dict[str, Any], where: str) -> None:
    """Raise UserError for a file of another format version."""
    if (version := content.get("version")) != FORMAT_VERSION:
        raise UserError(
            f"{where} has format version {version}, allowed is {FORMAT_VERSION}: delete the folder and build it again"
        )
