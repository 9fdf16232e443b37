"""Made pictures weigh what photographs weigh, and everything that a loader needs is there."""

import json
from pathlib import Path
from statistics import mean

from PIL import Image
from transformers import AutoTokenizer

from llava_mini.bench.made_data import MadeData, make_data
from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.text.conversation import conversation_of


def test_pictures_weigh_as_much_as_photographs(data: MadeData) -> None:
    files = sorted(data.images.iterdir())
    assert len(files) == 40
    assert {Image.open(file).size for file in files} == {(640, 480)}
    assert 80_000 < mean(file.stat().st_size for file in files) < 120_000
    assert len({file.read_bytes() for file in files}) == 40


def test_both_sets_hold_every_record_and_its_picture(data: MadeData) -> None:
    records = {record["id"]: record for record in json.loads(data.records.read_text())}
    for folder, images, sides in (
        (data.shards, data.images, (640, 480)),
        (data.small_shards, data.small_images, (448, 336)),
    ):
        shards = ShardSet(folder)
        assert len(shards) == len(records) == 40
        for index in range(len(shards)):
            members = shards.read(index)
            record = json.loads(members["json"])
            assert record == records[record["id"]]
            assert members["jpg"] == (images / record["image"]).read_bytes()
            assert Image.open(images / record["image"]).size == sides


def test_conversations_are_as_long_as_llavas(data: MadeData) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(data.tokenizer))
    conversations = [conversation_of(record) for record in json.loads(data.records.read_text())]
    assert {len(each.turns) for each in conversations} == {1, 2, 3, 4, 5}
    texts = ["".join(turn.human + turn.answer for turn in each.turns) for each in conversations]
    assert 100 < mean(len(tokenizer(text)["input_ids"]) for text in texts) < 400


def test_the_same_data_are_made_each_time(tmp_path: Path) -> None:
    one, other = (make_data(tmp_path / name, 3) for name in ("a", "b"))
    assert ShardSet(one.small_shards).fingerprint == ShardSet(other.small_shards).fingerprint
    assert (one.tokenizer / "tokenizer.json").read_bytes() == (other.tokenizer / "tokenizer.json").read_bytes()
