"""Clips and texts go the way of a user's own data: LLaVA JSON and mp4 files in, shards of frames and texts out."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from tests.data.toyworld.kinds import CLIP_KINDS, TEXT_KINDS

from llava_mini.data.format.index import Modality, image_names
from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.text.conversation import parse_record
from llava_mini.data.toyworld.clips import clip_at
from llava_mini.data.toyworld.make import make_world
from llava_mini.data.toyworld.source_files import build_from_files, write_files

SIZES = {"clip-val": 6, "text-val": 4}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"), seed=2, sizes=SIZES)


def test_a_clip_is_a_film_and_a_record_with_its_name(tmp_path: Path) -> None:
    records = json.loads(write_files(tmp_path, "clip-test", 1, 2).read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "clip-test-000000.mp4",
        "clip-test-000001.mp4",
        "clip-test.json",
    ]
    for number, record in enumerate(records):
        assert record["id"] == f"clip-test-{number:06d}"
        assert record["video"] == f"{record['id']}.mp4"
        assert [message["from"] for message in record["conversations"]] == ["human", "gpt"] * len(CLIP_KINDS)
        values = [message["value"] for message in record["conversations"]]
        assert values[0].startswith("<video>\n")
        assert not any("<video>" in value for value in values[1:])
        assert sorted(record["kinds"]) == sorted(CLIP_KINDS)


def test_a_text_names_no_file(tmp_path: Path) -> None:
    records = json.loads(write_files(tmp_path, "text-test", 1, 3).read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["text-test.json"]
    for record in records:
        assert set(record) == {"id", "source", "conversations", "kinds"}
        assert set(record["kinds"]) == set(TEXT_KINDS)


def test_a_built_clip_has_one_frame_of_every_state(world: Path) -> None:
    shards = ShardSet(world / "clip-val")
    seen = set()
    for index in range(len(shards)):
        members = shards.read(index)
        number = int(json.loads(members["json"])["id"].removeprefix("clip-val-"))
        clip = clip_at("clip-val", 2, number)
        pictures = [np.asarray(Image.open(io.BytesIO(members[name]))) for name in image_names(members)]
        assert shards.modality(index) == Modality.VIDEO
        assert shards.frames(index) == len(pictures) == len(clip.states)
        for shown, drawn in zip(pictures, clip.frames, strict=True):
            assert shown.shape == (64, 64, 3)
            assert np.abs(shown.astype(int) - drawn).mean() < 5  # what H.264 and JPEG lose
        conversation = parse_record(members["json"])
        assert conversation.is_video
        assert conversation.kinds == json.loads(members["json"])["kinds"]
        seen.add(number)
    assert seen == set(range(SIZES["clip-val"]))
    assert shards.rejected == 0


def test_built_texts_have_no_pictures(world: Path) -> None:
    shards = ShardSet(world / "text-val")
    assert len(shards) == SIZES["text-val"]
    for index in range(len(shards)):
        assert list(shards.read(index)) == ["json"]
        assert shards.modality(index) == Modality.TEXT


def test_webdataset_reads_built_clips(world: Path) -> None:
    samples = list(
        webdataset.WebDataset(str(world / "clip-val" / "shard-000000.tar"), shardshuffle=False).decode("pil")
    )
    assert len(samples) == SIZES["clip-val"]
    assert samples[0]["000000.jpg"].size == (64, 64)
    assert samples[0]["json"]["video"].endswith(".mp4")


def test_a_world_keeps_no_films_and_two_are_the_same_bytes(world: Path, tmp_path: Path) -> None:
    assert sorted(path.name for path in world.iterdir() if path.is_dir()) == ["clip-val", "text-val", "tokenizer"]
    for name, count in SIZES.items():
        again = build_from_files(tmp_path / name, name, 2, count)
        assert again.fingerprint == ShardSet(world / name).fingerprint
    make_world(world, seed=2, sizes=SIZES)  # complete: opened, verified and left alone


def test_what_a_killed_build_left_is_removed(tmp_path: Path) -> None:
    stale = tmp_path / ".text-val-files"
    stale.mkdir()
    (stale / "clip-val-000000.mp4").write_bytes(b"cut off")
    assert len(build_from_files(tmp_path / "text-val", "text-val", 0, 3)) == 3
    assert not stale.exists()
