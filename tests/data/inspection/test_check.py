"""A check reads everything again; it names damaged files and samples from which nothing can be learned."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.refusals import refuses
from transformers import PreTrainedTokenizerFast

from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.inspection.check import Findings, check_set, finding_lines, report_to
from llava_mini.data.text.labels import ConversationTokenizer
from llava_mini.data.text.templates import TINY
from llava_mini.token_layout import TokenLayout

MakeRecord = Callable[..., dict[str, bytes]]
MakeShards = Callable[..., ShardSet]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_whole_set_passes(
    make_shards: MakeShards, members: MakeRecord, clip: MakeRecord, tokenize: ConversationTokenizer, workers: int
) -> None:
    shards = make_shards(10, {3: clip(3, frames=4), 5: members(5, [("how many star objects", "two")], image=False)})
    found = check_set(shards, tokenize, workers=workers)
    assert found.failure() == "" and found.bad == [] and found.damaged == []
    assert (found.counts["samples"], found.counts["images"], found.counts["bad"]) == (10, 12, 0)
    supervised = (8 * 2 + 1 + 1) * 2  # answers, each a word and the end token
    assert found.counts["supervised"] == supervised < found.counts["tokens"]
    lines = finding_lines(shards, found)
    assert lines[0].endswith("10 samples in 3 shards, 12 images")
    assert lines[1].endswith(f"{supervised} supervised, 0 samples truncated") and lines[2:] == ["bad       0 samples"]


Fault = Callable[[MakeRecord], dict[str, bytes]]
FAULTS: dict[str, Fault] = {
    "it has no json member": lambda members: {"png": members(1)["png"]},
    "not JSON": lambda members: {**members(1), "json": b'{"id": "1", '},
    "an empty answer": lambda members: members(1, [("<image>\nhow many", " ")]),
    "1 <image> for 0 images": lambda members: members(1, image=False),
    "0 <image> for 1 images": lambda members: members(1, [("hello", "two")]),
    "`image_path` is not read": lambda members: members(1, [("hello", "two")], image=False, image_path="a"),
    "a video without frames": lambda members: members(1, [("hello", "two")], image=False, video="a.mp4"),
    "image cannot be decoded": lambda members: {**members(1), "png": members(1)["png"][:500]},
}


@pytest.mark.parametrize(("reason", "fault"), FAULTS.items(), ids=FAULTS)
def test_what_cannot_be_learnt_from_is_named(
    make_shards: MakeShards, members: MakeRecord, reason: str, fault: Fault
) -> None:
    shards = make_shards(9, {6: fault(members)})
    found = check_set(shards)
    (bad,) = found.bad
    assert (bad.index, bad.key, bad.shard) == (6, "06", "shard-000001.tar")
    assert bad.reason.startswith(reason)
    assert bad.id == ("" if "json" in reason.lower() else "1")
    assert found.counts["bad"] == 1 and found.damaged == []
    assert found.failure() == "there is nothing to supervise in 1 of 9 samples, more than 1%"


def test_samples_without_a_supervised_token_are_bad(
    make_shards: MakeShards, members: MakeRecord, tokenizer: PreTrainedTokenizerFast
) -> None:
    long = members(2, [("<image>\n" + "how many " * 40, "two")])
    shards = make_shards(9, {2: long})
    assert check_set(shards).failure() == ""
    tokenize = ConversationTokenizer(tokenizer, TINY, layout=TokenLayout(2, 2), max_length=40)
    found = check_set(shards, tokenize)
    (bad,) = found.bad
    assert bad.index == 2 and "40" in bad.reason
    assert found.failure() == "there is nothing to supervise in 1 of 9 samples, more than 1%"


def test_one_percent_may_be_bad() -> None:
    found = Findings()
    found.counts.update(samples=1000, bad=10)
    assert found.failure() == ""
    found.counts.update(bad=1)
    assert found.failure() == "there is nothing to supervise in 11 of 1000 samples, more than 1%"


@pytest.mark.parametrize("workers", [1, 2])
def test_damaged_files_are_all_named(make_shards: MakeShards, workers: int) -> None:
    shards = make_shards(12)
    for name in ("shard-000000.tar", "shard-000002.tar"):
        damage(shards.folder / name, -1)  # in the padding: no sample is touched
    found = check_set(shards, workers=workers)
    assert [line.split(" has SHA-256")[0] for line in found.damaged] == [
        str(shards.folder / "shard-000000.tar"), str(shards.folder / "shard-000002.tar")
    ]  # fmt: skip
    assert found.counts["bad"] == 0 and found.counts["samples"] == 12
    assert found.failure().startswith("2 damaged files, ") and "shard-000000.tar has SHA-256" in found.failure()
    assert sum(line.startswith("damaged   ") for line in finding_lines(shards, found)) == 2


def test_a_damaged_index_is_named(make_shards: MakeShards) -> None:
    shards = make_shards(4)
    damage(shards.folder / "index.npy", -1)
    assert "index.npy has SHA-256" in check_set(ShardSet(shards.folder)).failure()


def test_the_first_bad_samples_are_named_and_all_are_reported(
    make_shards: MakeShards, members: MakeRecord, tmp_path: Path
) -> None:
    shards = make_shards(30, {number: members(number, [("é", " ")]) for number in range(2, 27)})
    report = tmp_path / "bad.jsonl"
    with report_to(report) as on_bad:
        found = check_set(shards, workers=2, on_bad=on_bad)
    assert [bad.index for bad in found.bad] == list(range(2, 22))
    lines = finding_lines(shards, found)
    assert lines[1] == "bad       25 samples" and lines[-1] == "  and 5 more"
    assert lines[2] == "  02 in shard-000000.tar (2): an empty answer"
    reported = [json.loads(line) for line in report.read_text().splitlines()]
    assert sorted(bad["index"] for bad in reported) == list(range(2, 27))
    assert {key: value for key, value in reported[0].items() if key != "index"} == {
        "key": reported[0]["key"], "shard": reported[0]["shard"], "id": str(reported[0]["index"]),
        "reason": "an empty answer",
    }  # fmt: skip


def test_a_report_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with refuses("path", tmp_path), report_to(tmp_path):
        pytest.fail("it began")
    with report_to(None) as on_bad:
        assert on_bad is None


def damage(path: Path, place: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)


SidecarFault = Callable[[Path], object]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Path.unlink, "is missing (training does not need it, but"),
        (lambda path: path.write_bytes(path.read_bytes()[:300]), "is not valid JSON"),
        (lambda path: path.write_text(path.read_text().replace('"05"', '"55"')), "does not agree with shards.json and"),
        (
            lambda path: path.write_text(path.read_text().replace('"rejected": []', '"rejected": [["a", "b"]]')),
            "does not agree with shards.json and index.npy",
        ),
    ],
    ids=["gone", "cut", "other sample", "other rejections"],
)
def test_a_sidecar_that_is_gone_or_damaged_is_named_and_all_samples_can_be_read(
    make_shards: MakeShards, fault: SidecarFault, message: str
) -> None:
    folder = Path(make_shards(12).folder)
    fault(folder / "shard-000001.json")
    shards = ShardSet(folder)
    found = check_set(shards)
    (damage,) = found.damaged
    assert damage.startswith(f"{folder / 'shard-000001.json'} ") and message in damage
    assert found.counts["bad"] == 0 and [shards.key(i) for i in range(12) if "json" in shards.read(i)][5] == "05"
    assert found.failure() == f"1 damaged files, {damage}"
