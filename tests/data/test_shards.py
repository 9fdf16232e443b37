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
