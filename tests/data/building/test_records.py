"""Records come one at a time from arrays and lines, told apart by content; what is broken is named with its place."""

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from llava_mini.data.building.records import Entry, read_records
from llava_mini.errors import UserError

RECORDS: list[dict[str, Any]] = [
    {"id": "a", "conversations": [{"from": "human", "value": "é 猫 🐈"}], "source": "own"},
    {"conversations": [], "score": 1.5, "count": 12345678901234567890, "flag": None, "image": ["x.jpg", "y.jpg"]},
    {"id": 7, "source": ""},
    {"id": 8, "source": 12},
]
EXPECTED = [RECORDS[0], {**RECORDS[1], "source": "mix"}, {**RECORDS[2], "source": "mix"}, RECORDS[3]]


def written(folder: Path, content: str | bytes, name: str = "mix.json") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(records: list[Any]) -> str:
    return "\n".join(json.dumps(record) for record in records)


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize(
    "content",
    [
        json.dumps(RECORDS),
        json.dumps(RECORDS, indent=2, ensure_ascii=False),
        "\n\n  " + json.dumps(RECORDS) + "\n",
        lines(RECORDS),
        lines(RECORDS).replace("\n", "\r\n\r\n") + "\r\n",
    ],
)
@pytest.mark.parametrize("name", ["mix.json", "mix.jsonl"])
def test_arrays_and_lines_give_the_same_records_whatever_the_name(
    tmp_path: Path, content: str, bom: bytes, name: str
) -> None:
    entries = list(read_records(written(tmp_path, bom + content.encode(), name)))
    assert [entry.record for entry in entries] == EXPECTED
    assert not any(entry.reason for entry in entries)


def test_places_count_records_and_lines_from_one(tmp_path: Path) -> None:
    array = read_records(written(tmp_path, json.dumps(RECORDS)))
    assert [entry.place for entry in array] == [f"mix.json record {number}" for number in range(1, 5)]
    spaced = read_records(written(tmp_path, lines(RECORDS).replace("\n", "\n\n"), "mix.jsonl"))
    assert [entry.place for entry in spaced] == [f"mix.jsonl line {number}" for number in (1, 3, 5, 7)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"id": "b", ', "not valid JSON (Expecting property name enclosed in double quotes at column 12)"),
        ('{"id": "b"} {"id": "c"}', "not valid JSON (Extra data at column 13)"),
        ('{"image": NaN}', "not valid JSON (NaN is no JSON value)"),
        ("[" * 100_000, "not valid JSON (maximum recursion depth exceeded"),
        (b'{"id": "\xff"}', "not valid JSON ('utf-8' codec can't decode byte 0xff"),
        ("[1, 2]", "not a JSON object"),
        ('"text"', "not a JSON object"),
    ],
)
def test_a_broken_line_is_one_entry_with_a_reason(tmp_path: Path, line: str | bytes, reason: str) -> None:
    raw = line if isinstance(line, bytes) else line.encode()
    path = written(tmp_path, b'{"id": "a"}\n' + raw + b'\n{"id": "c"}\n', "mix.jsonl")
    first, broken, last = read_records(path)
    assert [first.record and first.record["id"], last.record and last.record["id"]] == ["a", "c"]
    assert (broken.place, broken.record) == ("mix.jsonl line 2", None)
    assert broken.reason.startswith(reason)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ('[{"id": 1}, {"id": 2}, {"id": 3}', "at character 33: 'the end' instead of ','"),
        ('[{"id": 1}, {"id": 2}, {"id": 3', "at character 32: Expecting ',' delimiter"),
        ('[{"id": 1}, {"id": 2}, {"id": x}]', "at character 31: Expecting value"),
        ('[{"id": 1}, {"id": 2}] ]', "at character 24: ']' after the array"),
        ('[{"id": 1}, {"id": 2} {"id": 3}]', "at character 23: '{' instead of ','"),
        ('[{"id": 1}, ]', "at character 13: Expecting value"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_broken_array_is_named_with_file_and_position(tmp_path: Path, content: str, cause: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(UserError) as caught:
        list(read_records(path))
    message = str(caught.value)
    assert message.startswith(f"{path} is a broken array, at character ") and cause in message and "\n" not in message


def test_an_array_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"at character \d+: not UTF-8"):
        list(read_records(written(tmp_path, b'[{"id": "\xff"}]')))


@pytest.mark.parametrize(
    ("value", "reason"), [("9" * 5000, "a number of 5000 digits"), ("NaN", "NaN is no JSON value")]
)
def test_a_value_of_an_array_that_cannot_be_kept_costs_its_record_only(tmp_path: Path, value: str, reason: str) -> None:
    first, last = read_records(written(tmp_path, f'[{{"id": {value}}}, {{"id": 2}}]'))
    assert first == Entry("mix.json record 1", None, f"not valid JSON ({reason})")
    assert last.record and last.record["id"] == 2


def test_an_array_is_read_alike_wherever_its_chunks_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [{"id": number, "text": 'ä€😀\\"' * number} for number in range(30)] + [1234567, True, "ü"]
    path = written(tmp_path, json.dumps(values, ensure_ascii=False, indent=1))
    whole = list(read_records(path))
    assert [entry.record and entry.record["id"] for entry in whole] == [*range(30), None, None, None]
    for size in (1, 2, 3, 7, 100):
        monkeypatch.setattr("llava_mini.data.building.records._CHUNK", size)
        assert list(read_records(path)) == whole


def test_an_element_that_is_no_object_is_an_entry_with_a_reason(tmp_path: Path) -> None:
    entries = list(read_records(written(tmp_path, '[{"id": 1}, [2], "three", null]')))
    assert entries[1:] == [Entry(f"mix.json record {place}", None, "not a JSON object") for place in (2, 3, 4)]


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"\x1f\x8b\x08\x00abc", "compressed by gzip"),
        (b"PK\x03\x04abc", "a zip archive"),
        ("[]".encode("utf-16"), "UTF-16"),
    ],
)
def test_other_content_is_refused_at_once(tmp_path: Path, content: bytes, cause: str) -> None:
    with pytest.raises(UserError, match=f"mix.json is {cause}; allowed: a JSON array or JSON Lines in UTF-8"):
        list(read_records(written(tmp_path, content)))


@pytest.mark.parametrize("source", [["a"], {"name": "a"}, True, 1.5])
def test_a_source_that_is_no_name_costs_its_record(tmp_path: Path, source: Any) -> None:
    (entry,) = read_records(written(tmp_path, json.dumps([{"id": 1, "source": source}])))
    reason = f"source is neither a text nor a whole number: {json.dumps(source)}"
    assert entry == Entry("mix.json record 1", None, reason)


TALK = {"id": 1, "title": 'a "{[" b', "conversations": [{"from": "human", "value": '{"conversations": 1}'}]}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("before", [{}, {"info": {"conversations": 2, "tags": [1]}}])
def test_an_object_that_holds_the_records_is_refused_with_their_key(
    tmp_path: Path, before: dict[str, Any], indent: int | None
) -> None:
    path = written(tmp_path, json.dumps({**before, "data": [TALK, TALK]}, indent=indent))
    with pytest.raises(UserError, match=r'mix\.json is one object that contains the records as its "data": save'):
        list(read_records(path))


@pytest.mark.parametrize("form", ["messages", "instruction", "query"])
def test_so_is_one_that_holds_records_of_another_form(tmp_path: Path, form: str) -> None:
    path = written(tmp_path, json.dumps({"info": {form: "x"}, "train": [{"id": 1, form: "a", "tags": [{form: 1}]}]}))
    with pytest.raises(UserError, match=r'mix\.json is one object that contains the records as its "train": save'):
        list(read_records(path))


@pytest.mark.parametrize(
    "record",
    [
        TALK,
        {"boxes": [{"x": 1}], **TALK},
        {"messages": [{"role": "user"}]},
        {"found": [{"query": "a"}], **TALK},
        {"history": [["a", "b"]], "query": "c", "response": "d"},
    ],
)
def test_a_first_line_that_holds_lists_of_objects_is_a_record(tmp_path: Path, record: dict[str, Any]) -> None:
    for path in (written(tmp_path, lines([record])), written(tmp_path, lines([record, TALK]))):
        assert next(read_records(path)).record == {**record, "source": "mix"}


@pytest.mark.parametrize("record", ['{"image": "a.jpg", "image": "b.jpg"}', '{"x": [{"image": 1, "image": 1}]}'])
@pytest.mark.parametrize("whole", ["%s", "[%s, {}]"])
def test_a_key_that_occurs_twice_costs_its_record(tmp_path: Path, record: str, whole: str) -> None:
    first = next(read_records(written(tmp_path, whole % record)))
    assert first.record is None and first.reason == 'not valid JSON ("image" is twice in an object)'


@pytest.mark.parametrize("content", ["{}", "[{}]"])
def test_a_file_whose_name_is_no_utf_8_has_places_that_are_text(tmp_path: Path, content: str) -> None:
    entry = next(read_records(written(tmp_path, content, os.fsdecode(b"donn\xe9es.json"))))
    assert entry.place in ("donn\ufffdes.json line 1", "donn\ufffdes.json record 1")
    assert entry.record == {"source": "donn\ufffdes"}


def test_a_missing_file_and_an_endless_line_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"nothing\.json: cannot be read: No such file or directory"):
        list(read_records(tmp_path / "nothing.json"))
    monkeypatch.setattr("llava_mini.data.building.records._LONGEST_LINE", 100)
    with pytest.raises(UserError, match="line 2 is longer than 100 bytes"):
        list(read_records(written(tmp_path, '{"id": 1}\n' + '{"data": "' + "x" * 100)))


@pytest.mark.parametrize("as_lines", [True, False])
def test_a_file_is_never_whole_in_memory(tmp_path: Path, as_lines: bool) -> None:
    records = [{"id": str(number), "conversations": ["x" * 1000]} for number in range(4000)]
    path = written(tmp_path, lines(records) if as_lines else json.dumps(records))
    del records
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_records(path)) == 4000
        assert tracemalloc.get_traced_memory()[1] < 1e6 < path.stat().st_size / 4
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ({"id": "a"}, "a (mix.json record 4)"),
        ({"id": 0}, "0 (mix.json record 4)"),
        ({"id": ""}, "mix.json record 4"),
        ({"id": None}, "mix.json record 4"),
        ({}, "mix.json record 4"),
        (None, "mix.json record 4"),
    ],
)
def test_a_record_is_named_by_its_id_and_place(record: dict[str, Any] | None, name: str) -> None:
    assert Entry("mix.json record 4", record).name == name
