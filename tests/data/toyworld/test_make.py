"""Worlds are the same bytes from the same seed, complete or absent, and never mixed with another."""

import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.text.conversation import parse_record
from llava_mini.data.toyworld import make
from llava_mini.data.toyworld.make import make_world, toy_sample
from llava_mini.data.toyworld.scenes import scene_at
from llava_mini.errors import UserError

SMALL = {"instruct-train": 5, "caption-val": 3}


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def keys(shards: ShardSet) -> list[str]:
    return [shards.key(index) for index in range(len(shards))]


def test_two_builds_are_the_same_bytes(tmp_path: Path) -> None:
    one = make_world(tmp_path / "one", seed=3, sizes=SMALL)
    # Another process with other string hashes, so that nothing depends on the order of a set.
    call = f"make_world({str(tmp_path / 'two')!r}, seed=3, sizes={SMALL})"
    code = f"from llava_mini.data.toyworld.make import make_world; {call}"
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)
    assert hashes(one) == hashes(tmp_path / "two")
    assert hashes(make_world(tmp_path / "three", seed=4, sizes=SMALL)) != hashes(one)


def test_a_world_holds_its_sets_and_tokenizer(world: Path) -> None:
    described = json.loads((world / "world.json").read_text())
    assert described["seed"] == 0
    for name, facts in described["sets"].items():
        shards = ShardSet(world / name)
        assert (len(shards), shards.fingerprint) == (facts["samples"], facts["fingerprint"])
        assert keys(shards) == [f"{name}-{i:06d}" for i in range(facts["samples"])]
    assert (world / "tokenizer" / "tokenizer.json").exists()


def test_samples_are_pictures_and_conversations_about_them(world: Path) -> None:
    for name in ("instruct-test", "caption-train"):
        shards = ShardSet(world / name)
        members = shards.read(2)
        picture = np.asarray(Image.open(io.BytesIO(members["png"])))
        assert (picture == scene_at(name, 0, 2).image).all()
        conversation = parse_record(members["json"])
        assert len(conversation.turns) == 12
        assert conversation.num_images == 1
        assert conversation.turns[0].human.startswith("<image>")
        assert len(conversation.kinds) == 12
        record = json.loads(members["json"])
        assert record["id"] == shards.key(2)
        assert record["image"] == f"{shards.key(2)}.png"
        asked = [turn.human.removeprefix("<image>").strip() for turn in conversation.turns]
        assert all(asked) if name.startswith("instruct") else not any(asked)


def test_webdataset_reads_a_world(world: Path) -> None:
    tar = str(world / "instruct-val" / "shard-000000.tar")
    samples = list(webdataset.WebDataset(tar, shardshuffle=False).decode("pil"))
    assert [each["__key__"] for each in samples] == keys(ShardSet(world / "instruct-val"))
    assert samples[0]["png"].size == (64, 64)
    assert len(samples[0]["json"]["conversations"]) == 24


def test_sets_share_no_picture(world: Path) -> None:
    pictures = [ShardSet(world / name).read(i)["png"] for name in make.DEFAULT_SIZES for i in range(5)]
    assert len(set(pictures)) == len(pictures)


def test_a_complete_world_is_left_alone_and_a_missing_set_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_world(tmp_path, seed=0, sizes={"instruct-val": 4})
    before = hashes(tmp_path)
    made: list[str] = []

    def spy(name: str, seed: int, index: int) -> tuple[str, dict[str, bytes]]:
        made.append(name)
        return toy_sample(name, seed, index)

    monkeypatch.setattr(make, "toy_sample", spy)
    make_world(tmp_path, seed=0, sizes={"instruct-val": 4})
    assert hashes(tmp_path) == before
    make_world(tmp_path, seed=0, sizes={"instruct-val": 4, "caption-val": 2})
    assert made == ["caption-val"] * 2
    assert len(ShardSet(tmp_path / "caption-val")) == 2


def test_an_interrupted_build_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(name: str, seed: int, index: int) -> tuple[str, dict[str, bytes]]:
        if (name, index) == ("caption-val", 1):
            raise KeyboardInterrupt
        return toy_sample(name, seed, index)

    with monkeypatch.context() as patch:
        patch.setattr(make, "toy_sample", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_world(tmp_path / "a", seed=3, sizes=SMALL)
    assert list(json.loads((tmp_path / "a" / "world.json").read_text())["sets"]) == ["instruct-train"]
    make_world(tmp_path / "a", seed=3, sizes=SMALL)
    assert hashes(tmp_path / "a") == hashes(make_world(tmp_path / "b", seed=3, sizes=SMALL))


@pytest.mark.parametrize(
    ("seed", "sizes", "message"),
    [
        (1, {"instruct-val": 4}, f"recipe {make.RECIPE_VERSION} and seed 0, not {make.RECIPE_VERSION} and 1"),
        (0, {"instruct-val": 5}, "holds 4 samples of instruct-val, not 5"),
        (0, {"instruct-dev": 5}, r"data\.sizes\.instruct-dev=5: allowed are caption-train"),
        (0, {"instruct-val": 0}, r"data\.sizes\.instruct-val=0"),
        (-1, {"instruct-val": 4}, "seed=-1"),
    ],
)
def test_another_world_in_the_folder_is_refused(tmp_path: Path, seed: int, sizes: dict[str, int], message: str) -> None:
    make_world(tmp_path, seed=0, sizes={"instruct-val": 4})
    before = hashes(tmp_path)
    with pytest.raises(UserError, match=message):
        make_world(tmp_path, seed=seed, sizes=sizes)
    assert hashes(tmp_path) == before


def test_damaged_worlds_are_named(tmp_path: Path) -> None:
    make_world(tmp_path, seed=0, sizes={"instruct-val": 4})
    tar = tmp_path / "instruct-val" / "shard-000000.tar"
    os.truncate(tar, 100)
    with pytest.raises(UserError, match=r"shard-000000\.tar has 100 bytes"):
        make_world(tmp_path, seed=0, sizes={"instruct-val": 4})


def test_damage_that_leaves_the_size_as_it_was_is_named(tmp_path: Path) -> None:
    make_world(tmp_path, seed=0, sizes={"instruct-val": 4})
    tar = tmp_path / "instruct-val" / "shard-000000.tar"
    content = bytearray(tar.read_bytes())
    content[len(content) // 2] ^= 1
    tar.write_bytes(content)
    with pytest.raises(UserError, match=r"instruct-val/shard-000000\.tar has SHA-256"):
        make_world(tmp_path, seed=0, sizes={"instruct-val": 4})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "does not contain a JSON object"),
        ({"version": make.RECIPE_VERSION, "seed": 0}, "does not describe a toy world"),
        ({"version": make.RECIPE_VERSION, "seed": 0, "sets": []}, "does not describe a toy world"),
        (
            {"version": make.RECIPE_VERSION, "seed": 0, "sets": {"instruct-val": {"samples": 4}}},
            "does not describe a toy world",
        ),
        (
            {"version": make.RECIPE_VERSION, "seed": 0, "sets": {"../elsewhere": {"samples": 4, "fingerprint": "f"}}},
            r"names the set \.\./elsewhere; allowed",
        ),
    ],
)
def test_what_does_not_describe_a_world_is_named(tmp_path: Path, content: Any, message: str) -> None:
    make_world(tmp_path, seed=0, sizes={"instruct-val": 4})
    (tmp_path / "world.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"world\.json ?{message}"):
        make_world(tmp_path, seed=0, sizes={"instruct-val": 4})
