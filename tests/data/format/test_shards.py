"""Shards are standard, deterministic WebDataset tars; every way in which a set can be damaged is named in one line."""

import hashlib
import json
import os
import pickle
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset
from tests.data.format.json_files import put

from llava_mini.data.format.index import INDEX_DTYPE, Modality
from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.format.shards import finish_set, is_complete, is_written, write_shard, write_shards
from llava_mini.errors import SampleError, UserError

SAMPLES = [(f"k{i:03d}", {"json": b'{"id": %d}' % i, "bin": bytes([i]) * (i * 97)}) for i in range(11)]


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    return write_shards(SAMPLES, tmp_path / "set", samples_per_shard=4)


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_samples_come_back_by_number(shards: ShardSet) -> None:
    assert [shards.key(index) for index in range(len(shards))] == [key for key, _ in SAMPLES]
    for index in (10, 0, 7, 4, 3):
        assert shards.read(index) == SAMPLES[index][1]
        assert shards.read_record(index) == SAMPLES[index][1]["json"]
    assert [shards.shard_name(i) for i in (0, 3, 4, 10)] == [f"shard-00000{n}.tar" for n in (0, 0, 1, 2)]


def test_the_index_tells_modality_frames_and_source(tmp_path: Path) -> None:
    def record(**fields: object) -> bytes:
        return json.dumps({"conversations": [{"from": "human", "value": "four"}], **fields}).encode()

    frames = {f"{i:06d}.jpg": b"x" for i in range(3)}
    samples = [
        ("a", {"json": record(source="captions", image="a.jpg"), "jpg": b"x"}),
        ("b", {"json": record(source="clips", video="b.mp4"), **frames}),
        ("c", {"json": record(image=["c", "d", "e"]), **frames}),
        ("d", {"json": record(source="captions")}),
    ]
    shards = write_shards(samples, tmp_path / "set")
    assert [shards.modality(i) for i in range(4)] == [Modality.IMAGE, Modality.VIDEO, Modality.IMAGE, Modality.TEXT]
    assert [shards.frames(i) for i in range(4)] == [1, 3, 3, 0]
    assert [shards.source(i) for i in range(4)] == ["captions", "clips", "", "captions"]
    assert shards.index["text_length"].tolist() == [4] * 4
    assert shards.sources == ["captions", "clips", ""]


def test_reading_a_record_reads_nothing_else(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = os.pread

    def spy(descriptor: int, size: int, offset: int) -> bytes:
        read.append(size)
        return original(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", spy)
    shards.read_record(10)
    shards.read(10)
    size = len(SAMPLES[10][1]["json"])
    assert read == [512 + size, 512 + 512 + 512 + 1024]


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


def test_shards_may_be_written_in_any_order(shards: ShardSet, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    for number in (2, 0, 1):
        assert not is_written(folder, number)
        write_shard(folder, number, iter(SAMPLES[4 * number : 4 * number + 4]))
        assert is_written(folder, number)
    finish_set(folder, 3)
    assert hashes(folder) == hashes(shards.folder)


def test_any_change_of_content_changes_the_fingerprint(shards: ShardSet, tmp_path: Path) -> None:
    changed = [*SAMPLES[:-1], (SAMPLES[-1][0], {"json": b"{99}", "bin": SAMPLES[-1][1]["bin"]})]
    assert write_shards(changed, tmp_path / "changed", samples_per_shard=4).fingerprint != shards.fingerprint


def test_rejected_records_and_the_plan_are_kept(tmp_path: Path) -> None:
    rejected: list[tuple[str, str]] = []

    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        yield SAMPLES[0]
        rejected.append(("no 7", "image is missing"))

    write_shard(tmp_path, 0, samples(), rejected)
    write_shard(tmp_path, 1, [], [("no 8", "no answer")])  # a shard of which nothing could be used
    shards = finish_set(tmp_path, 2, {"seed": 3})
    assert (len(shards), shards.rejected, shards.plan) == (1, 2, {"seed": 3})
    assert json.loads((tmp_path / "shard-000000.json").read_text())["rejected"] == [["no 7", "image is missing"]]


def test_a_failure_while_writing_leaves_nothing_behind(tmp_path: Path) -> None:
    def failing() -> Iterator[tuple[str, dict[str, bytes]]]:
        yield SAMPLES[0]
        raise KeyError("stopped")

    with pytest.raises(KeyError, match="stopped"):
        write_shard(tmp_path, 0, failing())
    assert list(tmp_path.iterdir()) == []
    write_shard(tmp_path, 0, SAMPLES)
    before = hashes(tmp_path)
    with pytest.raises(KeyError, match="stopped"):
        write_shard(tmp_path, 0, failing())
    assert hashes(tmp_path) == before


def test_finishing_removes_what_killed_processes_left(shards: ShardSet, killed_writer: Callable[[Path], Path]) -> None:
    left = killed_writer(shards.folder / "shard-000001.tar")
    assert left.exists()
    (shards.folder / "shards.json").unlink()
    finish_set(shards.folder, 3)
    assert not list(shards.folder.glob(".*"))


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
    pickled = pickle.dumps(shards)
    assert len(pickled) < 2000  # not the index either
    copy = pickle.loads(pickled)
    shards.close()
    assert copy.read(0) == SAMPLES[0][1]
    assert copy.key(10) == "k010"


def test_a_missing_folder_or_listing_is_named(shards: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is no complete shard set"):
        ShardSet(tmp_path / "nowhere")
    (shards.folder / "shards.json").unlink()
    with pytest.raises(UserError, match=r"it has no shards\.json"):
        ShardSet(shards.folder)


@pytest.mark.parametrize("name", ["shard-000001.tar", "index.npy"])
def test_a_missing_file_is_named(shards: ShardSet, name: str) -> None:
    (shards.folder / name).unlink()
    with pytest.raises(UserError, match=rf"{name} is missing or cannot be read"):
        ShardSet(shards.folder)


@pytest.mark.parametrize("name", ["shard-000001.tar", "index.npy"])
def test_a_truncated_file_is_named_with_both_sizes(shards: ShardSet, name: str) -> None:
    path = shards.folder / name
    size = path.stat().st_size
    os.truncate(path, size - 512)
    with pytest.raises(UserError, match=rf"{name} has {size - 512} bytes instead of {size}"):
        ShardSet(shards.folder)


@pytest.mark.parametrize("suffix", ["json", "tar"])
def test_a_set_is_not_finished_without_every_shard(shards: ShardSet, suffix: str) -> None:
    (shards.folder / f"shard-000001.{suffix}").unlink()
    with pytest.raises(UserError, match=r"1 of 3 shards are not written, the first is shard-000001"):
        finish_set(shards.folder, 3)


def test_a_truncated_tar_does_not_finish_a_set(shards: ShardSet) -> None:
    os.truncate(shards.folder / "shard-000001.tar", 100)
    with pytest.raises(UserError, match=r"shard-000001\.tar has 100 bytes instead of"):
        finish_set(shards.folder, 3)


@pytest.mark.parametrize("value", ["../secret.tar", "/etc/passwd", "sub/shard-000000.tar", "shard-0.tar", "", 7, None])
def test_a_listing_leads_to_no_file_but_its_own_shards(shards: ShardSet, value: object) -> None:
    (shards.folder.parent / "secret.tar").write_bytes((shards.folder / "shard-000000.tar").read_bytes())
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
        (["shards", 1, "rejected"], -1),
        (["shards", 1, "sha256"], ...),
        (["shards", 1, "sha256"], 5),
        (["shards", 1, "sha256"], "abc"),
        (["sources"], ...),
        (["sources", 0], 3),
        (["index"], ...),
        (["index", "bytes"], "5"),
        (["index", "sha256"], None),
        (["plan"], 4),
    ],
)
def test_a_malformed_listing_is_named(shards: ShardSet, places: list[str | int], value: object) -> None:
    put(shards.folder / "shards.json", places, value)
    with pytest.raises(UserError, match=r"shards\.json is malformed"):
        ShardSet(shards.folder)


@pytest.mark.parametrize("content", [b"[]", b"\xff\xfe", b"[" * 100_000, b"{}", b"{"])
def test_other_content_than_json_objects_is_named(shards: ShardSet, content: bytes) -> None:
    (shards.folder / "shards.json").write_bytes(content)
    with pytest.raises(UserError, match=r"shards\.json"):
        ShardSet(shards.folder)


@pytest.mark.parametrize("name", ["shard-000000.tar", "shard-000002.tar", "index.npy"])
def test_verify_names_the_file_whose_content_changed_but_not_its_size(shards: ShardSet, name: str) -> None:
    shards.verify()
    content = bytearray((shards.folder / name).read_bytes())
    content[700] ^= 1
    (shards.folder / name).write_bytes(content)
    damaged = ShardSet(shards.folder)  # sizes and names are as they were
    with pytest.raises(UserError, match=rf"{name} has SHA-256 .*: damaged or changed"):
        damaged.verify()


def test_verify_names_a_tar_that_is_gone(shards: ShardSet) -> None:
    (shards.folder / "shard-000001.tar").unlink()
    with pytest.raises(UserError, match=r"shard-000001\.tar cannot be read"):
        shards.verify()


@pytest.mark.parametrize("version", [1, 9, None])
def test_another_format_version_is_named_with_what_to_do(shards: ShardSet, version: int | None) -> None:
    put(shards.folder / "shards.json", ["version"], version)
    with pytest.raises(UserError, match=rf"format version {version}, allowed is 2: delete the folder and build it"):
        ShardSet(shards.folder)


def test_a_tar_that_shrinks_while_it_is_read_spoils_single_samples(shards: ShardSet) -> None:
    assert shards.read(10) == SAMPLES[10][1]
    os.truncate(shards.folder / "shard-000002.tar", 100)
    with pytest.raises(SampleError, match="ends too early"):
        shards.read(10)
    (shards.folder / "shard-000001.tar").unlink()
    with pytest.raises(SampleError, match=r"shard-000001\.tar cannot be read"):
        shards.read(4)


@pytest.mark.parametrize(("field", "value"), [("shard", 3), ("offset", 10**12), ("size", 2**32 - 1)])
def test_a_damaged_index_leads_to_no_place_outside_of_the_tars(shards: ShardSet, field: str, value: int) -> None:
    index = np.load(shards.folder / "index.npy")
    index[field][5] = value
    np.save(shards.folder / "index.npy", index)
    with pytest.raises(SampleError, match="names a place outside of its tars"):
        ShardSet(shards.folder).read(5)


@pytest.mark.parametrize("name", ["/etc/passwd", "../k005.json", "k004.json"])
def test_a_member_that_is_not_the_samples_own_is_refused_and_named(shards: ShardSet, name: str) -> None:
    offset = int(shards.index["offset"][5])
    info = tarfile.TarInfo(name)
    info.size = len(SAMPLES[5][1]["json"])
    with open(shards.folder / "shard-000001.tar", "r+b") as tar:
        tar.seek(offset)
        tar.write(info.tobuf(tarfile.USTAR_FORMAT))
    for read in (shards.read, shards.read_record):
        with pytest.raises(SampleError, match=rf"tar member '{name}' is not k005\.<extension>"):
            read(5)
    assert shards.read(6) == SAMPLES[6][1]


def test_another_samples_place_is_noticed(shards: ShardSet) -> None:
    index = np.load(shards.folder / "index.npy")
    index["offset"][5] = index["offset"][4]
    np.save(shards.folder / "index.npy", index)
    with pytest.raises(SampleError, match=r"'k004\.json' is not k005\.<extension>"):
        ShardSet(shards.folder).read(5)


@pytest.mark.parametrize("wrong", [np.zeros(11), np.zeros(10, INDEX_DTYPE), np.zeros((11, 1), INDEX_DTYPE)])
def test_an_index_of_something_else_is_named(shards: ShardSet, wrong: np.ndarray) -> None:
    path = shards.folder / "index.npy"
    np.save(path, wrong)
    put(shards.folder / "shards.json", ["index", "bytes"], path.stat().st_size)
    with pytest.raises(UserError, match=r"index\.npy is no index of 11 samples"):
        ShardSet(shards.folder)


def test_an_index_that_is_no_array_is_named(shards: ShardSet) -> None:
    (shards.folder / "index.npy").write_bytes(b"{}")
    put(shards.folder / "shards.json", ["index", "bytes"], 2)
    with pytest.raises(UserError, match=r"index\.npy cannot be read"):
        ShardSet(shards.folder)


def test_an_index_whose_header_is_damaged_is_named(shards: ShardSet) -> None:
    path = Path(shards.folder) / "index.npy"
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"'<u8')", bytes(6), 1))  # numpy's parser raises its own TokenError
    with pytest.raises(UserError, match=r"index\.npy cannot be read \("):
        ShardSet(shards.folder)


@pytest.mark.parametrize(("field", "value"), [("source", 60_000), ("shard", 2**31), ("modality", 9)])
def test_an_index_that_names_what_the_listing_does_not_have_is_named(shards: ShardSet, field: str, value: int) -> None:
    shards.index = shards.index.copy()
    shards.index[field] = value
    ask = {"source": shards.source, "shard": shards.shard_name, "modality": shards.modality}[field]
    with pytest.raises(UserError, match=r"index\.npy does not agree with shards\.json: damaged or changed"):
        ask(0)


def test_a_complete_set_is_never_overwritten_but_an_interrupted_one_is(shards: ShardSet) -> None:
    with pytest.raises(UserError, match="already contains a shard set"):
        write_shards(SAMPLES, shards.folder)
    (shards.folder / "shards.json").unlink()
    assert len(write_shards(SAMPLES, shards.folder, samples_per_shard=100)) == 11
    assert len(list(shards.folder.glob("*.tar"))) == 1


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "no sample"),
        ([("a.b", {"json": b""})], r"'a\.b'"),
        ([("../a", {"json": b""})], r"'\.\./a'"),
        ([("a" * 33, {"json": b""})], "1 to 32 of"),
        ([("a", {"json": b""}), ("a", {"json": b""})], "'a' is a repetition"),
        ([("a", {"json": b""}), ("b", {"json": b""}), ("a", {"json": b""})], "several samples of one key: a"),
        ([("a", {"/etc/passwd": b""})], "member '/etc/passwd' of a"),
        ([("a", {"json/../x": b""})], "member 'json/../x' of a"),
    ],
)
def test_impossible_samples_are_refused(
    tmp_path: Path, samples: list[tuple[str, dict[str, bytes]]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        write_shards(samples, tmp_path / "bad", samples_per_shard=2)
    with pytest.raises(UserError, match="no complete shard set"):
        ShardSet(tmp_path / "bad")


def test_the_samples_of_a_shard_are_known(shards: ShardSet) -> None:
    assert shards.num_shards == 3
    assert [list(shards.samples_of(shard)) for shard in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert is_complete(shards.folder) and not is_complete(shards.folder.parent)


def test_one_shard_is_verified_apart(shards: ShardSet) -> None:
    tar = shards.folder / "shard-000001.tar"
    raw = bytearray(tar.read_bytes())
    raw[-3000] ^= 1
    tar.write_bytes(raw)
    shards.verify_shard(0)
    shards.verify_index()
    with pytest.raises(UserError, match=r"shard-000001\.tar has SHA-256"):
        shards.verify_shard(1)
