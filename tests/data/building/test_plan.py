"""A plan deals every record to one place, is frozen, and is not mixed with a plan of anything else."""

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.refusals import refuses

from llava_mini.data.building.plan import Options, Plan, describe_sources, frozen_plan, remove_plan
from llava_mini.data.format.shards import write_shard
from llava_mini.errors import UserError

Freeze = Callable[..., Plan]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "mix.json"
    path.write_text(json.dumps([{"id": str(number)} for number in range(25)]))
    return path


@pytest.fixture
def freeze(tmp_path: Path, source: Path) -> Freeze:
    """freeze(sources=[...], **options): the plan in `out`."""

    def make(sources: list[Path] | None = None, **options: Any) -> Plan:
        sources = [source] if sources is None else sources
        out = tmp_path / "out"
        return frozen_plan(out, sources, describe_sources(sources), Options(**{"samples_per_shard": 10, **options}))

    return make


def ids(plan: Plan) -> list[str]:
    return [
        entry.record["id"] if entry.record else entry.reason
        for shard in range(plan.num_shards)
        for _, entry in plan.entries(shard)
    ]


def test_every_record_has_one_place_with_a_fixed_key(freeze: Freeze) -> None:
    plan = freeze()
    assert (plan.num_records, plan.num_shards) == (25, 3)
    keys = [key for shard in range(3) for key, _ in plan.entries(shard)]
    assert keys == [f"{place // 10:06d}-{place % 10:05d}" for place in range(25)]
    assert sorted(ids(plan), key=int) == [str(number) for number in range(25)] != ids(plan)


def test_the_order_is_a_function_of_the_seed(freeze: Freeze, tmp_path: Path) -> None:
    first = ids(freeze())
    order = np.random.default_rng(0).permutation(25)
    assert first == [str(number) for number in order]
    remove_plan(tmp_path / "out")
    assert ids(freeze()) == first
    remove_plan(tmp_path / "out")
    assert ids(freeze(seed=1)) != first


def test_a_frozen_plan_is_taken_up_and_not_made_again(freeze: Freeze, tmp_path: Path) -> None:
    first = freeze()
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "plan").iterdir()}
    assert {path.name for path in files} == {"plan.json", "records.jsonl", "offsets.npy", "order.npy"}
    assert freeze() == first
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_a_plan_whose_making_was_interrupted_is_made_again(freeze: Freeze, tmp_path: Path) -> None:
    expected = ids(freeze())
    plan = tmp_path / "out" / "plan"
    (plan / "plan.json").unlink()
    (plan / "records.jsonl").write_bytes(b"[")
    (plan / ".order.npy.17.tmp").write_bytes(b"half")
    assert ids(freeze()) == expected
    assert not list(plan.glob(".*"))


def test_sources_are_one_after_the_other(freeze: Freeze, source: Path, tmp_path: Path) -> None:
    lines = tmp_path / "more.jsonl"
    lines.write_text('{"id": "x"}\n{"id": \n{"id": "\\ud83d"}\n{"score": 1e999}\n')
    plan = freeze([source, lines])
    entries = {entry.place: entry for shard in range(plan.num_shards) for _, entry in plan.entries(shard)}
    assert len(entries) == 29
    assert entries["more.jsonl line 1"].record == {"id": "x", "source": "more"}
    assert entries["mix.json record 25"].record == {"id": "24", "source": "mix"}
    assert entries["more.jsonl line 2"].reason == "not valid JSON (Expecting value at column 7)"
    assert "surrogates not allowed" in entries["more.jsonl line 3"].reason
    assert "Out of range float" in entries["more.jsonl line 4"].reason


def test_fractions_of_an_array_are_written_as_they_were(freeze: Freeze, tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    path.write_text('[{"id": 12345678901234567890, "score": 0.25}]')
    (_, entry), *_ = freeze([path]).entries(0)
    assert entry.record == {"id": 12345678901234567890, "score": 0.25, "source": "numbers"}


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"seed": 1}, "seed 0, not 1"),
        ({"samples_per_shard": 9}, "samples-per-shard 10, not 9"),
        ({"resize": 336}, "resize None, not 336"),
        ({"fps": 2.0}, "fps 1.0, not 2.0"),
        ({"background": (0, 0, 0)}, r"background \[255, 255, 255\], not \[0, 0, 0\]"),
        ({"images": Path()}, "images None, not /"),
        ({"videos": Path()}, "videos None, not /"),
    ],
)
def test_other_options_are_refused(freeze: Freeze, options: dict[str, Any], difference: str) -> None:
    freeze()
    with pytest.raises(UserError, match=f"out was built with {difference}.*; delete it or name another folder"):
        freeze(**options)


def test_white_is_refused_where_another_background_was_chosen(freeze: Freeze) -> None:
    freeze(background=(0, 0, 0))
    with pytest.raises(UserError, match=r"out was built with background \[0, 0, 0\], not \[255, 255, 255\]"):
        freeze()


def test_other_sources_are_refused(freeze: Freeze, source: Path, tmp_path: Path) -> None:
    freeze()
    other = tmp_path / "other.json"
    other.write_text(source.read_text())
    with pytest.raises(UserError, match=r"out was built with sources mix\.json, not other\.json"):
        freeze([other])
    with pytest.raises(UserError, match=r"sources mix\.json, not mix\.json, other\.json"):
        freeze([source, other])
    source.write_text(source.read_text().replace('"24"', '"99"'))
    with pytest.raises(UserError, match=r"another mix\.json \(SHA-256 [0-9a-f]{12}\.\.\., now [0-9a-f]{12}\.\.\.\)"):
        freeze()


def test_shards_without_a_plan_are_not_mixed_with_new_ones(freeze: Freeze, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "shard-000000.tar").touch()
    with pytest.raises(UserError, match="out contains shards that do not say what they were made from; delete it or"):
        freeze()
    write_shard(tmp_path / "out", 0, [("a", {"json": b"{}"})])
    with pytest.raises(UserError, match=r"shard-000000\.json does not say what it was made from; delete .*out or name"):
        freeze()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "it is empty"),
        ("[]", "it is empty"),
        ('{\n "id": 1\n}', r"mix.json line 1: not valid JSON \(Expecting property name"),
        ("[1, 2]", "mix.json record 1: not a JSON object"),
    ],
)
def test_a_source_without_records_is_refused(freeze: Freeze, source: Path, content: str, reason: str) -> None:
    source.write_text(content)
    with pytest.raises(
        UserError, match=rf"mix\.json contains no record \({reason}.*allowed: a JSON array of objects or"
    ):
        freeze()


def test_an_empty_source_beside_others_is_reported(
    freeze: Freeze, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    empty = tmp_path / "empty.json"
    empty.write_text("[]")
    assert freeze([source, empty]).num_records == 25
    assert "mix.json: 25 records" in caplog.text and "empty.json: 0 records" in caplog.text


def test_a_source_that_can_be_read_only_once_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with refuses("source", tmp_path / "pipe", "files of JSON or JSON Lines"):
        describe_sources([tmp_path / "pipe"])


def test_sources_must_be_there_and_different(source: Path) -> None:
    with refuses("sources", []):
        describe_sources([])
    with pytest.raises(UserError, match=r"nothing\.json: cannot be read: No such file"):
        describe_sources([Path("nothing.json")])
    with refuses("sources"):
        describe_sources([source, source.parent / "." / source.name])


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("seed", -1, "0 and above"),
        ("samples_per_shard", 0, "1 to 100000"),
        ("samples_per_shard", 100_001, "1 to 100000"),
        ("resize", 0, "1 pixel and above"),
        ("fps", 0.0, "more than 0, up to 1000"),
        ("fps", float("nan"), "more than 0, up to 1000"),
        ("images", Path("nowhere"), None),
        ("videos", Path("nowhere"), None),
    ],
)
def test_impossible_options_are_named(name: str, value: Any, allowed: str | None) -> None:
    with refuses(name, value, allowed):
        Options(**{name: value})


def test_a_record_takes_few_bytes_of_memory(tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    path.write_text('{"id": "0123456789", "conversations": []}\n' * 20_000)
    described = describe_sources([path])
    tracemalloc.start()
    try:
        frozen_plan(tmp_path / "out", [path], described, Options())
        assert tracemalloc.get_traced_memory()[1] < 300_000 + 32 * 20_000
    finally:
        tracemalloc.stop()
