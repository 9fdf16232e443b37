"""Folders of tensors: every layout is read alike, and what is damaged or hostile is one line that names the file."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llava_mini.errors import UserError
from llava_mini.models.interop.checkpoint import Checkpoint, check_shapes
from llava_mini.models.interop.json_config import check_plain, read_config
from llava_mini.models.interop.shards import ShardWriter

TENSORS = {"a": torch.arange(6.0).reshape(2, 3).half(), "b": torch.ones(4).half(), "c": torch.zeros(2, 2)}


def index(folder: Path, ending: str, weight_map: Any) -> None:
    stem = "model.safetensors" if ending == "safetensors" else "pytorch_model.bin"
    (folder / f"{stem}.index.json").write_text(json.dumps({"weight_map": weight_map}))


def one_safetensors(folder: Path) -> None:
    save_file(TENSORS, folder / "model.safetensors")


def sharded_safetensors(folder: Path) -> None:
    writer = ShardWriter(folder, shard_bytes=16)
    for name, tensor in TENSORS.items():
        writer.add(name, tensor)
    writer.close()
    assert len(list(folder.glob("model-0000?-of-00003.safetensors"))) == 3


def one_pickle(folder: Path) -> None:
    torch.save(TENSORS, folder / "pytorch_model.bin")


def old_pickle(folder: Path) -> None:
    torch.save(TENSORS, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def sharded_pickles(folder: Path) -> None:
    torch.save({"a": TENSORS["a"]}, folder / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": TENSORS["b"], "c": TENSORS["c"]}, folder / "pytorch_model-00002-of-00002.bin")


def indexed_too_much(folder: Path) -> None:
    one_safetensors(folder)
    index(folder, "safetensors", {"a": "model.safetensors", "z": "model.safetensors"})


@pytest.mark.parametrize(
    "write", [one_safetensors, sharded_safetensors, one_pickle, old_pickle, sharded_pickles], ids=lambda f: f.__name__
)
def test_every_layout_holds_the_same(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path)
    checkpoint = Checkpoint.of(tmp_path)
    assert checkpoint.shapes == {"a": [2, 3], "b": [4], "c": [2, 2]}
    assert checkpoint.dtype == torch.float16  # of most of its numbers
    found = dict(checkpoint.stream())
    assert found.keys() == TENSORS.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in TENSORS.items()
    )


def test_safetensors_are_preferred(tmp_path: Path) -> None:
    torch.save({"other": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    one_safetensors(tmp_path)
    assert set(Checkpoint.of(tmp_path).shapes) == set(TENSORS)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n"


class Command:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def truncated(folder: Path) -> None:
    one_safetensors(folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda _: None, r"contains no model\*\.safetensors and no pytorch_model\*\.bin"),
        (truncated, r"model\.safetensors is no safetensors file"),
        (
            lambda f: (f / "pytorch_model.bin").write_bytes(b"none"),
            r"pytorch_model\.bin is a text and no weights \('none'\)",
        ),
        (lambda f: (f / "pytorch_model.bin").write_text("hello" * 9), r"pytorch_model\.bin is a text and no weights"),
        (lambda f: (f / "pytorch_model.bin").write_text("Entry not found"), r"is a text and no weights \('Entry not f"),
        (lambda f: (f / "pytorch_model.bin").write_text("<!DOCTYPE html>"), r"pytorch_model\.bin is a web page"),
        (lambda f: (f / "pytorch_model.bin").write_text(POINTER), r"pytorch_model\.bin is a pointer of Git LFS"),
        (lambda f: (f / "model.safetensors").write_text(POINTER), r"model\.safetensors is a pointer of Git LFS"),
        (lambda f: (f / "pytorch_model.bin").touch(), r"pytorch_model\.bin is empty"),
        (lambda f: (f / "pytorch_model.bin").write_bytes(bytes(99)), r"pytorch_model\.bin \w+ .*maker|damaged"),
        (
            lambda f: torch.save({1: torch.ones(1)}, f / "pytorch_model.bin"),
            "contains a tensor under 1; allowed are names",
        ),
        (
            lambda f: torch.save({"a": Command()}, f / "pytorch_model.bin"),
            r"pytorch_model\.bin contains something else than tensors, which asks for posix\.mkdir; nothing of it is r",
        ),
        (lambda f: torch.save({"a": 3}, f / "pytorch_model.bin"), "something else than tensors by name"),
        (lambda f: index(f, "safetensors", {"a": "../model.safetensors"}), r"names the file '\.\./model\.safetensors'"),
        (lambda f: index(f, "bin", {"a": "/etc/passwd"}), "names the file '/etc/passwd'; allowed are weight files"),
        (lambda f: index(f, "bin", {"a": "passwd"}), "names the file 'passwd'; allowed are weight files of its own"),
        (lambda f: index(f, "safetensors", {"a": "x.safetensors"}), r"names the file x\.safetensors, which is missing"),
        (lambda f: index(f, "safetensors", ["a"]), "has no weight_map"),
        (lambda f: (f / "model.safetensors.index.json").write_text("{"), "not valid JSON"),
        (
            indexed_too_much,
            "the index names tensors that no file contains: z",
        ),
        (
            lambda f: [save_file({"a": torch.ones(1)}, f / f"model-{i}.safetensors") for i in (1, 2)],
            "tensor a is in two files",
        ),
    ],
)
def test_what_cannot_be_read_is_one_line(
    tmp_path: Path, write: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        Checkpoint.of(tmp_path)
    assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_number_that_is_not_finite_is_named_when_it_is_reached(
    tmp_path: Path, kind: str, value: float, dtype: torch.dtype
) -> None:
    spoilt = torch.zeros(3, 4, dtype=dtype)
    spoilt[1, 2] = value
    tensors = {"a": torch.ones(2), "b": spoilt, "empty": torch.zeros(0), "ids": torch.arange(3)}
    if kind == "bin":
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    else:
        save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.of(tmp_path)
    assert {name for name, _ in checkpoint.stream({"a", "empty", "ids"})} == {"a", "empty", "ids"}
    with pytest.raises(UserError, match=rf"model\.{kind}: b contains NaN or infinity; allowed are finite numbers"):
        list(checkpoint.stream())


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.float8_e4m3fn])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_weights_that_are_no_floating_numbers_are_named(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    tensors = {"a": torch.ones(2).half(), "codes": torch.ones(300).to(dtype)}
    if kind == "bin":
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    else:
        save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.of(tmp_path)
    assert checkpoint.dtype == torch.float16  # codes do not count
    checkpoint.check_floats(["a"])
    with pytest.raises(UserError, match=r"codes is stored as \w+, as in a quantized .* float64, float32, float16, bf"):
        checkpoint.check_floats(["a", "codes"])


@pytest.mark.parametrize("part", ["the whole", "its language model"])
def test_a_config_that_says_quantized_is_refused(part: str) -> None:
    said: dict[str, Any] = {"quantization_config": {"quant_method": "awq", "bits": 4}}
    check_plain("folder", {"text_config": {}, "quantization_config": None})
    with pytest.raises(UserError, match=r"folder: a quantized checkpoint \(quantization_config: awq\); allowed are"):
        check_plain("folder", said if part == "the whole" else {"text_config": said})


def test_a_folder_of_links_is_read_as_the_hubs_cache_is(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    save_file(TENSORS, tmp_path / "blobs" / "0123")
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blobs/0123")
    assert Checkpoint.of(tmp_path / "snapshot").shapes.keys() == TENSORS.keys()


@pytest.mark.parametrize(
    "name", ["../blobs/x.safetensors", "/x.safetensors", "a/../x.safetensors", "..", "", "a\\b.bin"]
)
def test_an_index_cannot_lead_out_of_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    save_file(TENSORS, tmp_path / "blobs" / "x.safetensors")
    index(tmp_path / "snapshot", "safetensors", {"a": name})
    with pytest.raises(UserError, match="names the file"):
        Checkpoint.of(tmp_path / "snapshot")


def test_config_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json: cannot be read: No such file"):
        read_config(tmp_path)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match=r"config\.json: cannot be read: Is a directory"):
        read_config(tmp_path)
    (tmp_path / "config.json").rmdir()
    with pytest.raises(UserError, match="no such folder"):
        read_config(tmp_path / ("n" * 300))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="does not contain a JSON object"):
        read_config(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        read_config(tmp_path / "config.json")


def test_a_few_of_many_misfits_are_named() -> None:
    needed = {f"layer{i}": [i, 2] for i in range(9)}
    found = {"layer0": [0, 3], "other": [1]}
    with pytest.raises(UserError) as caught:
        check_shapes("folder", found, needed, lambda name: f"their.{name}")
    assert str(caught.value) == (
        "folder: missing tensors: their.layer1 [1, 2], their.layer2 [2, 2], their.layer3 [3, 2], their.layer4 [4, 2] "
        "and 4 more; unexpected tensors: their.other [1]; "
        "misshapen tensors: their.layer0: shape [0, 3], the config says [0, 2]"
    )


def test_shards_stay_within_their_size_and_shared_memory_is_no_obstacle(tmp_path: Path) -> None:
    big, shared = torch.zeros(100), torch.ones(10)
    written: dict[str, Tensor] = {
        "one": shared,
        "two": shared,
        "big": big,
        "view": shared[2:4],
        "turned": big.reshape(50, 2).T,
    }
    writer = ShardWriter(tmp_path, shard_bytes=100)
    for name, tensor in written.items():
        writer.add(name, tensor)
    writer.close()
    listed = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert listed["metadata"]["total_size"] == sum(tensor.nbytes for tensor in written.values())
    for name, tensor in written.items():
        held = load_file(tmp_path / listed["weight_map"][name])
        assert torch.equal(held[name], tensor)
        assert len(held) == 1 or sum(each.nbytes for each in held.values()) <= 100
    assert not list(tmp_path.glob("part-*"))
