"""Requests are read or refused one by one; answers are gone on with, and are nobody else's."""

import errno
import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llava_mini.errors import UserError
from llava_mini.inference.requests import Request, open_answers, read_requests


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "requests.jsonl"


def test_fields_of_requests(path: Path) -> None:
    lines = [
        '{"id": "a", "image": "x/1.png", "question": "what is here"}',
        "",
        '{"image": ["/1.png", "2.png"], "video": "v.mp4", "question": "what"}',
        '{"id": 7, "image": null, "question": "where"}',
    ]
    path.write_text("\n".join(lines))
    folder = path.parent
    assert read_requests(path) == [
        Request("a", "what is here", (folder / "x/1.png",), media={"image": "x/1.png"}),
        Request(
            3, "what", (Path("/1.png"), folder / "2.png"), (folder / "v.mp4",),
            media={"image": ["/1.png", "2.png"], "video": "v.mp4"},
        ),
        Request(7, "where"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "named", "reason"),
    [
        (b"{", "line 1", "no JSON"),
        (b'{"question": "\xe9"}', "line 1", "no JSON"),
        (b"[" * 100_000, "line 1", "no JSON"),
        (b"[1]", "line 1", "no JSON object"),
        (b'{"id": [1], "question": "?"}', "line 1", "id is neither"),
        (b'{"id": true, "question": "?"}', "line 1", "id is neither"),
        (b'{"question": "a", "question": "b"}', "line 1", '"question" is twice'),
        (b'{"id": "a"}', "a", "no question"),
        (b'{"question": 5}', 1, "no question"),
        (b'{"question": "?", "images": "a.png"}', 1, "unknown field 'images'; allowed are id, image, video, question"),
        (b'{"question": "?", "image": "https://host/a.png"}', 1, "https://host/a.png: a URL; only files are read"),
        (b'{"question": "?", "video": ["a.mp4", "s3://b/c.mp4"]}', 1, "s3://b/c.mp4: a URL; only files are read"),
        (b'{"question": "?", "image": "data:image/png,AAAA"}', 1, "data:image/png,AAAA: a URL; only files are read"),
        (b'{"question": "?", "image": 5}', 1, "must be a path or a list of paths"),
        (b'{"question": "?", "video": ["a", ""]}', 1, "must be a path or a list of paths"),
    ],
)
def test_a_line_that_is_no_request_is_refused_alone(path: Path, line: bytes, named: str | int, reason: str) -> None:
    path.write_bytes(line + b'\n{"question": "and this"}\n')
    wrong, right = read_requests(path)
    assert wrong.id == named and wrong.refused is not None and reason in wrong.refused
    assert right == Request(2, "and this")


@pytest.mark.parametrize(
    ("line", "named", "reason"),
    [
        (r'{"id": "\ud800", "question": "?"}', "line 1", "id is no Unicode text"),
        (r'{"id": "a", "image": "\ud800.png", "question": "?"}', "a", "a path is no Unicode text"),
        (r'{"id": "a", "video": ["b", "\ud800"], "question": "?"}', "a", "a path is no Unicode text"),
    ],
)
def test_half_a_character_is_refused(path: Path, line: str, named: str, reason: str) -> None:
    path.write_text(line)
    assert read_requests(path) == [Request(named, refused=reason)]


def test_a_line_without_an_id_gives_way_to_those_with_one(path: Path) -> None:
    path.write_text('{\n{"id": "line 1", "question": "?"}\n{"id": "line 4 (2)", "question": "?"}\n[]\n{\n'
                    '{"id": "line 4", "question": "?"}\n')  # fmt: skip
    assert [request.id for request in read_requests(path)] == [
        "line 1 (2)", "line 1", "line 4 (2)", "line 4 (3)", "line 5", "line 4",
    ]  # fmt: skip


def test_two_requests_of_one_id_are_an_error(path: Path) -> None:
    path.write_text('{"id": 2, "question": "?"}\n{"question": "?"}\n')
    with pytest.raises(UserError, match="lines 1 and 2 have the same id 2"):
        read_requests(path)
    path.write_text('{"id": "2", "question": "?"}\n{"question": "?"}\n')
    assert [request.id for request in read_requests(path)] == ["2", 2]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_a_file_of_another_encoding_is_refused_as_a_whole(path: Path, encoding: str) -> None:
    """Line by line its requests would be failures, which are not tried again."""
    path.write_text('{"id": "a", "question": "what"}\n' * 2, encoding=encoding)
    with pytest.raises(UserError, match="UTF-16, UTF-32 or no text at all; allowed is UTF-8"):
        read_requests(path)


def test_an_image_in_place_of_requests_is_refused(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n more")
    with pytest.raises(UserError, match="no text at all"):
        read_requests(path)


@pytest.mark.parametrize("mark", ["\ufeff", "\ufffe"])
def test_a_byte_order_mark_alone_tells_the_encoding(path: Path, mark: str) -> None:
    path.write_bytes(mark.encode("utf-16-be") + "早".encode("utf-16-be"))
    with pytest.raises(UserError, match="allowed is UTF-8"):
        read_requests(path)


def test_a_byte_order_mark_of_utf_8_is_passed_over(path: Path) -> None:
    path.write_text('{"question": "what"}\n', encoding="utf-8-sig")
    assert read_requests(path) == [Request(1, "what")]


def test_no_requests(path: Path) -> None:
    with pytest.raises(UserError, match=r"requests\.jsonl: cannot be read: No such file"):
        read_requests(path)


REQUESTS = [Request(1, "one"), Request("b", "two"), Request(3, "three")]
FIRST = {"id": "b", "question": "two", "answer": "早 a\nb"}
SECOND = {"id": 3, "question": "three", "error": "why"}


def test_answers_are_gone_on_with_and_a_torn_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with open_answers(path, REQUESTS) as answers:
        answers.add([FIRST])
    whole = path.read_bytes()
    for torn in range(1, len(json.dumps(SECOND))):
        path.write_bytes(whole + json.dumps(SECOND).encode()[:torn])
        with open_answers(path, REQUESTS) as answers:
            assert [request in answers for request in REQUESTS] == [False, True, False]
            answers.add([SECOND])
            assert (answers.answered, answers.failed) == ({"b"}, {3})
        assert [json.loads(line) for line in path.read_text().splitlines()] == [FIRST, SECOND]
    with open_answers(path, REQUESTS) as answers:
        assert [request in answers for request in REQUESTS] == [False, True, True]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("text\n", "line 1 is no answer"),
        ('{"answer": "a"}\n', "line 1 is no answer"),
        ('{"id": [1]}\n', "line 1 is no answer"),
        ('{"id": 1, "question": "one"}\n', "line 1 is no answer"),
        ("a note without an end", "line 1 contains something else than answers; name another file"),
        ('{"id": 1, "question": "one", "error": "a"}\n- milk', "line 2 contains something else than answers"),
        ('{"id": "other", "answ', "line 1 contains something else than answers"),
        ('{"id": 1, "question": "one"}', "line 1 is no answer"),
        (
            '{"id": 1, "question": "one", "answer": ""}\n{"id": 9, "error": ""}\n',
            "line 2 answers a request that is no more",
        ),
        (
            '{"id": 1, "question": "other", "answer": "a"}\n',
            "line 1 answers another request than the one that has the id 1; delete the line or name another file",
        ),
        ('{"id": 1, "error": "a"}\n', "line 1 answers another request"),  # of one that could not be asked
        ('{"id": 1, "question": "one", "error": "a"}\n' * 2, "line 2 answers another request"),
    ],
)
def test_what_is_no_answer_to_these_requests_is_left_alone(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=reason), open_answers(path, REQUESTS):
        pass
    assert path.read_text() == content


ASKED = {"image": "0.png", "question": "what color is the cross"}


@pytest.mark.parametrize(
    "changed",
    [
        [{**ASKED, "image": "1.png"}, ASKED],  # a line that is put above it, with the same question
        [{**ASKED, "image": "1.png"}],
        [{"video": "0.png", "question": ASKED["question"]}],
        [{**ASKED, "image": ["0.png", "1.png"]}],
        [{"question": ASKED["question"]}],
        [{**ASKED, "question": "what"}],
        [{"image": "0.png"}],  # no question: it cannot be asked
    ],
)
@pytest.mark.parametrize("found", [{"answer": "blue"}, {"error": "why"}])
def test_an_answer_is_not_taken_for_one_to_what_the_request_says_now(
    path: Path, tmp_path: Path, changed: list[Any], found: dict[str, str]
) -> None:
    answered = tmp_path / "answers.jsonl"
    for lines, known in (([ASKED], False), ([{"id": None, **ASKED}, {"question": "what"}], True), (changed, True)):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        requests = read_requests(path)
        if lines == changed:
            with pytest.raises(UserError, match="line 1 answers another request"), open_answers(answered, requests):
                pass
        else:
            with open_answers(answered, requests) as answers:
                assert (requests[0] in answers) == known
                if not known:
                    answers.add([requests[0].record(**found)])


def test_an_error_of_what_could_not_be_asked_is_none_of_what_can(path: Path, tmp_path: Path) -> None:
    for line, fails in (
        ('{"question": "?", "images": 1}', False),
        ('{"images": 2}', False),
        ('{"question": "?"}', True),
    ):
        path.write_text(line)
        requests = read_requests(path)
        if fails:
            with pytest.raises(UserError, match="another request"), open_answers(tmp_path / "a.jsonl", requests):
                pass
        else:
            with open_answers(tmp_path / "a.jsonl", requests) as answers:
                answers.add([request.record(error="why") for request in requests if request not in answers])
                assert requests[0] in answers


def test_half_a_character_in_a_question_is_known_again(path: Path, tmp_path: Path) -> None:
    path.write_text(r'{"question": "\ud800 \\ud800"}')
    for known in (False, True):
        requests = read_requests(path)
        with open_answers(tmp_path / "a.jsonl", requests) as answers:
            assert (requests[0] in answers) == known
            if not known:
                answers.add([requests[0].record(error="why")])


def test_an_empty_file_of_others_is_left_and_an_own_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with open_answers(path, REQUESTS):
        pass
    assert not path.exists()
    path.touch()
    with open_answers(path, REQUESTS):
        pass
    assert path.exists()


def test_an_error_that_names_an_odd_folder_is_written(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    error = {"id": 1, "question": "one", "error": "\udcff/a.png: none"}
    with open_answers(path, REQUESTS) as answers:
        answers.add([error])
    assert json.loads(path.read_text(encoding="utf-8")) == error


@pytest.fixture
def full_disk() -> Iterator[Callable[[int], None]]:
    """full_disk(bytes): no file can be written beyond so many."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path, full_disk: Callable[[int], None]) -> None:
    path = tmp_path / "answers.jsonl"
    with open_answers(path, REQUESTS) as answers:
        answers.add([FIRST])
    whole = path.read_bytes()
    full_disk(len(whole) + 9)
    with (
        pytest.raises(UserError, match=r"answers\.jsonl: cannot be written \(File too large\); what is in it is kept"),
        open_answers(path, REQUESTS) as answers,
    ):
        answers.add([SECOND])
    full_disk(2**30)
    assert path.read_bytes() == whole + json.dumps(SECOND).encode()[:9]
    with open_answers(path, REQUESTS) as answers:
        assert (answers.answered, answers.failed) == ({"b"}, set())


def test_answers_are_kept_in_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, reason in ((Path("/dev/null"), "no file, answers must be kept"), (tmp_path / "pipe", "not seekable")):
        with (
            pytest.raises(UserError, match=rf"{path}: cannot be written \(.*{reason}"),
            open_answers(path, REQUESTS) as answers,
        ):
            answers.add([FIRST])


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with (
        open_answers(path, REQUESTS),
        pytest.raises(UserError, match="another process is writing to it"),
        open_answers(path, REQUESTS),
    ):
        pass
    with pytest.raises(UserError, match="cannot be written"), open_answers(tmp_path, REQUESTS):
        pass


def test_answers_on_a_file_system_without_locks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", unsupported)
    path = tmp_path / "answers.jsonl"
    with (
        pytest.raises(UserError, match=rf"^{path}: cannot be locked \(No locks available\)$"),
        open_answers(path, REQUESTS),
    ):
        pass
