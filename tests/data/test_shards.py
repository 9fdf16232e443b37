"""Shards are standard, deterministic WebDataset tars; every way in which a set can be damaged is named in one line."""

import hashlib
import json
import os
import pickle
from pathlib import Path

import pytest
import webdataset

from llava_mini.data.errors import SampleError
from llava_mini.data.shards import ShardSet, write_shards
from llava_mini.errors import UserError

SAMPLES = [(f"k{i:03d}", {"json": b"{%d}" % i, "bin": bytes([i]) * (i * 97)}) for i in range(11)]


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    return write_shards(SAMPLES, tmp_path / "set", samples_per_shard=4)


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_samples_come_back_by_number(shards: ShardSet) -> None:
    assert shards.keys == [key for key, _ in SAMPLES]
    for index in (10, 0, 7, 4, 3):
        assert shards.read(index) == SAMPLES[index][1]
    assert shards.read(5, ["json", "absent"]) == {"json": b"{5}"}
    assert shards.extensions(5) == {"json", "bin"}
    assert [shards.shard_name(i) for i in (0, 3, 4, 10)] == [f"shard-00000{n}.tar" for n in (0, 0, 1, 2)]


def test_webdataset_reads_the_tars(shards: ShardSet) -> None:
    tars = sorted(str(path) for path in shards.folder.glob("*.tar"))
    found = [(each["__key__"], each["json"], each["bin"]) for each in webdataset.WebDataset(tars, shardshuffle=False)]
    assert found == [(key, members["json"], members["bin"]) for key, members in SAMPLES]


def test_two_builds_are_the_same_bytes_and_fingerprint(shards: ShardSet, tmp_path: Path) -> None:
    os.utime(shards.folder, (1, 1))
    swapped = [(key, dict(reversed(members.items()))) for key, members in SAMPLES]
    again = write_shards(swapped, tmp_path / "again", samples_per_shard=4)
    assert hashes(again.folder) == hashes(shards.folder)
    assert again.fingerprint == shards.fingerprint


def test_any_change_of_content_changes_the_fingerprint(shards: ShardSet, tmp_path: Path) -> None:
    changed = [*SAMPLES[:-1], (SAMPLES[-1][0], {"json": b"{99}", "bin": SAMPLES[-1][1]["bin"]})]
    assert write_shards(changed, tmp_path / "changed", samples_per_shard=4).fingerprint != shards.fingerprint


def test_few_files_stay_open_however_many_shards(tmp_path: Path) -> None:
    shards = write_shards([(str(i), {"json": b"%d" % i}) for i in range(50)], tmp_path / "many", samples_per_shard=1)
    before = len(os.listdir("/proc/self/fd"))
    for sweep in range(2):
        for index in range(50):
            assert shards.read(index) == {"json": b"%d" % index}, sweep
    assert len(os.listdir("/proc/self/fd")) - before <= 16
    shards.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_set_travels_to_another_process_without_its_open_files(shards: ShardSet) -> None:
    shards.read(0)
    copy = pickle.loads(pickle.dumps(shards))
    shards.close()
    assert copy.read(0) == SAMPLES[0][1]


def test_a_missing_folder_or_listing_is_named(shards: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is no complete shard set"):
        ShardSet(tmp_path / "nowhere")
    (shards.folder / "shards.json").unlink()
    with pytest.raises(UserError, match=r"it has no shards\.json"):
        ShardSet(shards.folder)


@pytest.mark.parametrize("name", ["shard-000001.tar", "shard-000001.index.json"])
def test_a_missing_file_is_named(shards: ShardSet, name: str) -> None:
    (shards.folder / name).unlink()
    with pytest.raises(UserError, match=rf"{name} is missing"):
        ShardSet(shards.folder)


def test_a_truncated_tar_is_named_with_both_sizes(shards: ShardSet) -> None:
    tar = shards.folder / "shard-000001.tar"
    size = tar.stat().st_size
    os.truncate(tar, size - 512)
    with pytest.raises(UserError, match=rf"shard-000001\.tar has {size - 512} bytes instead of {size}"):
        ShardSet(shards.folder)


def test_an_index_of_another_tar_is_named(shards: ShardSet) -> None:
    (shards.folder / "shard-000001.index.json").write_text((shards.folder / "shard-000000.index.json").read_text())
    with pytest.raises(UserError, match=r"shard-000001\.index\.json is not the index of"):
        ShardSet(shards.folder)


@pytest.mark.parametrize("name", ["shards.json", "shard-000002.index.json"])
def test_broken_json_is_named(shards: ShardSet, name: str) -> None:
    (shards.folder / name).write_text("{")
    with pytest.raises(UserError, match=rf"{name} is not valid JSON"):
        ShardSet(shards.folder)


def put(path: Path, places: list[str | int], value: object) -> None:
    """Write `value` at the end of a path of keys and numbers through a JSON file; ... stands for removing it."""
    content = inner = json.loads(path.read_text())
    for place in places[:-1]:
        inner = inner[place]
    if value is ...:
        del inner[places[-1]]
    else:
        inner[places[-1]] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("value", ["../secret.tar", "/etc/passwd", "sub/shard-000000.tar", "shard-0.tar", "", 7, None])
def test_a_listing_leads_to_no_file_but_its_own_shards(shards: ShardSet, value: object) -> None:
    first = shards.folder / "shard-000000.tar"
    secret = shards.folder.parent / "secret.tar"
    secret.write_bytes(first.read_bytes())
    secret.with_suffix(".index.json").write_text(first.with_suffix(".index.json").read_text())
    put(shards.folder / "shards.json", ["shards", 0, "name"], value)
    with pytest.raises(UserError, match=r"shards\.json is malformed: .* name shard-NNNNNN\.tar"):
        ShardSet(shards.folder)


@pytest.mark.parametrize(
    ("places", "value"),
    [
        (["shards"], ...),
        (["shards"], {}),
        (["shards"], []),
        (["shards", 1], 3),
        (["shards", 1, "name"], ...),
        (["shards", 1, "name"], "shard-000000.tar"),
        (["shards", 1, "bytes"], ...),
        (["shards", 1, "bytes"], "many"),
        (["shards", 1, "samples"], ...),
        (["shards", 1, "samples"], True),
        (["shards", 1, "sha256"], ...),
        (["shards", 1, "sha256"], 5),
        (["shards", 1, "sha256"], "abc"),
    ],
)
def test_a_malformed_listing_is_named(shards: ShardSet, places: list[str | int], value: object) -> None:
    put(shards.folder / "shards.json", places, value)
    with pytest.raises(UserError, match=r"shards\.json is malformed"):
        ShardSet(shards.folder)


@pytest.mark.parametrize(
    ("places", "value"),
    [
        ([0], "k000"),
        ([0], ["k000"]),
        ([0, 0], 5),
        ([0, 0], "../k"),
        ([0, 1], [1, 2]),
        ([0, 1, "json"], [512]),
        ([0, 1, "json"], 512),
        ([0, 1, "json"], ["512", 3]),
        ([0, 1, "json"], [-512, 3]),
        ([0, 1, "json"], [512, -3]),
        ([0, 1, "json"], [512.0, 3]),
        ([0, 1, "json"], [10**9, 3]),
        ([0, 1, "json"], [512, 10**9]),
        ([0, 1, "json"], [10**30, 3]),
    ],
)
def test_a_malformed_index_is_named(shards: ShardSet, places: list[str | int], value: object) -> None:
    put(shards.folder / "shard-000001.index.json", ["samples", *places], value)
    with pytest.raises(UserError, match=r"shard-000001\.index\.json is malformed: samples\[0\]"):
        ShardSet(shards.folder)


@pytest.mark.parametrize(
    ("places", "value"), [(["samples"], ...), (["samples"], 4), (["sha256"], ...), (["samples", 0], ...)]
)
def test_an_index_that_is_not_the_listed_one_is_named(shards: ShardSet, places: list[str | int], value: object) -> None:
    put(shards.folder / "shard-000001.index.json", places, value)
    with pytest.raises(UserError, match=r"shard-000001\.index\.json is not the index of .*: sha256 or samples"):
        ShardSet(shards.folder)


def test_a_place_may_end_with_the_file(shards: ShardSet) -> None:
    size = (shards.folder / "shard-000001.tar").stat().st_size
    put(shards.folder / "shard-000001.index.json", ["samples", 0, 1, "json"], [size - 3, 3])
    assert ShardSet(shards.folder).read(4, ["json"]) == {"json": b"\0\0\0"}
    put(shards.folder / "shard-000001.index.json", ["samples", 0, 1, "json"], [size - 3, 4])
    with pytest.raises(UserError, match=r"samples\[0\] names no place within"):
        ShardSet(shards.folder)


def test_a_key_that_two_samples_have_is_refused(shards: ShardSet) -> None:
    put(shards.folder / "shard-000001.index.json", ["samples", 0, 0], "k000")
    with pytest.raises(UserError, match="several samples of one key"):
        ShardSet(shards.folder)


@pytest.mark.parametrize("name", ["shards.json", "shard-000001.index.json"])
@pytest.mark.parametrize("content", [b"[]", b"\xff\xfe", b"[" * 100_000, b"{}"])
def test_other_content_than_json_objects_is_named(shards: ShardSet, name: str, content: bytes) -> None:
    (shards.folder / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        ShardSet(shards.folder)


@pytest.mark.parametrize("shard", ["shard-000000.tar", "shard-000002.tar"])
def test_verify_names_the_tar_whose_content_changed_but_not_its_size(shards: ShardSet, shard: str) -> None:
    shards.verify()
    content = bytearray((shards.folder / shard).read_bytes())
    content[700] ^= 1
    (shards.folder / shard).write_bytes(content)
    damaged = ShardSet(shards.folder)  # sizes and names are as they were
    with pytest.raises(UserError, match=rf"{shard} has SHA-256 .*: damaged or changed"):
        damaged.verify()


def test_verify_names_a_tar_that_is_gone(shards: ShardSet) -> None:
    (shards.folder / "shard-000001.tar").unlink()
    with pytest.raises(UserError, match=r"shard-000001\.tar cannot be read"):
        shards.verify()


def test_another_format_version_is_named(shards: ShardSet) -> None:
    listing = shards.folder / "shards.json"
    listing.write_text(json.dumps({**json.loads(listing.read_text()), "version": 9}))
    with pytest.raises(UserError, match="format version 9; allowed: 1"):
        ShardSet(shards.folder)


def test_a_tar_that_shrinks_while_it_is_read_spoils_single_samples(shards: ShardSet) -> None:
    assert shards.read(10) == SAMPLES[10][1]
    os.truncate(shards.folder / "shard-000002.tar", 100)
    with pytest.raises(SampleError, match="ends too early"):
        shards.read(10)
    (shards.folder / "shard-000001.tar").unlink()
    with pytest.raises(SampleError, match=r"shard-000001\.tar cannot be read"):
        shards.read(4)


def test_a_complete_set_is_never_overwritten_but_an_interrupted_one_is(shards: ShardSet) -> None:
    with pytest.raises(UserError, match="already holds a shard set"):
        write_shards(SAMPLES, shards.folder)
    (shards.folder / "shards.json").unlink()
    assert write_shards(SAMPLES, shards.folder, samples_per_shard=100).keys == shards.keys
    assert len(list(shards.folder.glob("*.tar"))) == 1


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "no sample"),
        ([("a.b", {"json": b""})], "'a.b'"),
        ([("a", {"json": b""}), ("a", {"json": b""})], "'a' is a repetition"),
    ],
)
def test_impossible_samples_are_refused(
    tmp_path: Path, samples: list[tuple[str, dict[str, bytes]]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        write_shards(samples, tmp_path / "bad")
    with pytest.raises(UserError, match="no complete shard set"):
        ShardSet(tmp_path / "bad")
