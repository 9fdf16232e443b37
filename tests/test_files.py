"""Nothing half-written is ever found under its name, and one process at a time holds a folder."""

import errno
import json
import multiprocessing
import os
import re
import signal
import stat
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest

from llava_mini.errors import UserError, WriteError
from llava_mini.files import (
    atomic_path,
    folder_lock,
    new_folder,
    rank_path,
    rank_paths,
    remove_leftovers,
    set_usual_mode,
    why_unreadable,
    write_json,
    write_text,
)

REPO = Path(__file__).parents[1]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def interrupted() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_path(path) as first, atomic_path(path) as second:  # as processes of one number on two machines
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


KillWriter = Callable[..., Path]
FORK = multiprocessing.get_context("fork")


def entries(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize("moment", ["made", "written", "renamed"])
def test_what_a_killed_writer_left_goes_with_the_next_file_that_is_written_beside_it(
    tmp_path: Path, killed_writer: KillWriter, moment: str
) -> None:
    left = killed_writer(tmp_path / "a.bin", moment)
    assert left.exists() and (tmp_path / "a.bin").exists() == (moment == "renamed")
    write_text(tmp_path / "b.txt", "new")
    assert entries(tmp_path) == (["a.bin", "b.txt"] if moment == "renamed" else ["b.txt"])


def test_what_killed_writers_left_can_be_removed_without_writing(tmp_path: Path, killed_writer: KillWriter) -> None:
    for name in "ab":
        killed_writer(tmp_path / name)
    remove_leftovers(tmp_path)
    assert entries(tmp_path) == []
    remove_leftovers(tmp_path / "no such folder")


def _write_slowly(path: Path, begun: Event, go_on: Event) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("slow")
        temporary.rename(temporary.with_name("other"))
        temporary.write_text("slow")  # as safetensors does: another file of the same name
        begun.set()
        go_on.wait(20)


def test_what_a_living_writer_of_another_process_is_writing_stays(tmp_path: Path, killed_writer: KillWriter) -> None:
    begun, go_on = FORK.Event(), FORK.Event()
    process = FORK.Process(target=_write_slowly, args=(tmp_path / "a", begun, go_on))
    process.start()
    assert begun.wait(20)
    left = killed_writer(tmp_path / "a")
    (living,) = set(tmp_path.glob(".llava-mini-*.tmp/*")) - {left}
    remove_leftovers(tmp_path)
    write_text(tmp_path / "a", "quick")
    assert not left.exists() and (living / "a").read_text() == "slow"
    go_on.set()
    process.join(20)
    assert process.exitcode == 0 and (tmp_path / "a").read_text() == "slow"
    assert entries(tmp_path) == ["a"]


def _write_many(folder: Path, name: str) -> None:
    for number in range(60):
        write_text(folder / name, str(number))


def test_writers_that_begin_and_end_at_the_same_time_do_not_take_one_another_for_dead(tmp_path: Path) -> None:
    processes = [FORK.Process(target=_write_many, args=(tmp_path, name)) for name in "abcd"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert entries(tmp_path) == ["a", "b", "c", "d"]
    assert {(tmp_path / name).read_text() for name in "abcd"} == {"59"}


def test_where_files_cannot_be_locked_they_are_written_and_nothing_is_taken_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with atomic_path(tmp_path / "a") as first:
        first.write_text("first")
        write_text(tmp_path / "b", "second")
        assert first.exists()
    assert entries(tmp_path) == ["a", "b"]


def test_folders_that_stay_until_the_lock_is_closed_are_removed_then(
    tmp_path: Path, killed_writer: KillWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_on_nfs(folder: Path, ignore_errors: bool = False) -> None:
        for path in folder.iterdir():
            path.unlink()
        if not ignore_errors:
            raise OSError(errno.ENOTEMPTY, "Directory not empty")

    killed_writer(tmp_path / "a")
    monkeypatch.setattr("shutil.rmtree", as_on_nfs)
    write_text(tmp_path / "b", "new")
    assert entries(tmp_path) == ["b"]


def test_nothing_is_removed_through_a_link_or_under_a_name_that_is_not_ours(
    tmp_path: Path, killed_writer: KillWriter
) -> None:
    area = killed_writer(tmp_path / "a").parent
    own, token = tmp_path / "own", "0123456789abcdef"
    for folder in (own / token, area / "mine"):
        folder.mkdir(parents=True)
        (folder / "keep").touch()
    (area / token).symlink_to(own / token)
    remove_leftovers(tmp_path)
    assert entries(area) == [token, "mine"]
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / area.name).symlink_to(own)
    remove_leftovers(linked)
    assert entries(own / token) == entries(area / "mine") == ["keep"]


def test_a_file_in_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="none/a: cannot be written: No such file or directory"):
        write_text(tmp_path / "none" / "a", "text")


def test_a_folder_appears_whole_and_a_killed_one_goes_with_the_next(tmp_path: Path, killed_writer: KillWriter) -> None:
    (killed_writer(tmp_path / "deep") / "model").mkdir()
    with new_folder(tmp_path / "new" / "model") as temporary:
        (temporary / "weights").write_text("all")
        assert not (tmp_path / "new" / "model").exists()
    assert (tmp_path / "new" / "model" / "weights").read_text() == "all" and entries(tmp_path / "new") == ["model"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(KeyError), new_folder(tmp_path / "empty") as temporary:
        raise KeyError
    assert entries(tmp_path) == ["empty", "new"]
    with pytest.raises(UserError, match="new: is there already"), new_folder(tmp_path / "new"):
        pass


def test_each_rank_has_a_file_of_its_own_and_rank_0_the_plain_one(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    assert [rank_path(path, rank).name for rank in (0, 1, 12)] == [
        "history.jsonl", "history.rank1.jsonl", "history.rank12.jsonl",
    ]  # fmt: skip
    assert rank_paths(path) == []
    for name in ("history.rank1.jsonl", "history.jsonl", "other.rank1.jsonl", "history.rank1.txt"):
        (tmp_path / name).touch()
    assert [each.name for each in rank_paths(path)] == ["history.jsonl", "history.rank1.jsonl"]


def test_json_keeps_the_order_of_keys(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": [2]})
    assert list(json.loads((tmp_path / "a.json").read_text()).items()) == [("b", 1), ("a", [2])]


def test_text_is_utf8_and_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "été")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.txt", "new \ud800")
    assert (tmp_path / "a.txt").read_bytes() == "été".encode()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def _append_twice(folder: Path, name: str) -> None:
    with folder_lock(folder):
        for _ in range(2):
            with open(folder / "log", "a") as log:
                log.write(name)
            time.sleep(0.05)


def test_processes_hold_a_folder_one_after_another(tmp_path: Path) -> None:
    processes = [FORK.Process(target=_append_twice, args=(tmp_path / "new", name)) for name in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
    log = (tmp_path / "new" / "log").read_text()
    assert sorted(log[i : i + 2] for i in range(0, len(log), 2)) == ["aa", "bb", "cc"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600), (0o000, 0o666)])
def test_a_file_gets_the_mode_that_the_umask_says(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        for number in (0o600, 0o666):
            path = tmp_path / f"{number}"
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, number))
            set_usual_mode(path)
            assert stat.S_IMODE(path.stat().st_mode) == mode
    finally:
        assert os.umask(before) == umask, "the umask was not touched"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["384", "438"]


def _set_mode_and_die(path: Path) -> None:
    Path.chmod = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    set_usual_mode(path)


def test_a_writer_that_is_killed_while_it_sets_a_mode_leaves_nothing_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    process = FORK.Process(target=_set_mode_and_die, args=(path,))
    process.start()
    process.join(20)
    assert process.exitcode == -signal.SIGKILL and len(entries(tmp_path)) == 2
    remove_leftovers(tmp_path)
    assert entries(tmp_path) == ["weights"]


def test_only_one_module_makes_files_of_other_modes() -> None:
    """safetensors and tempfile make files for their owner alone: whoever uses them must know."""
    users: dict[str, set[str]] = {"save_file": set(), "tempfile": set()}
    for path in (REPO / "src").rglob("*.py"):
        text = path.read_text()
        for name, found in users.items():
            if re.search(rf"(?<![\w.]){re.escape(name)}", text):
                found.add(path.relative_to(REPO / "src" / "llava_mini").as_posix())
    assert users == {
        "save_file": {"models/tensor_files.py"},
        # private folders and files that are gone when the process ends
        "tempfile": {
            "bench/data_path.py",
            "bench/report.py",
            "bench/train.py",
            "data/format/remote.py",
            "models/visual_inputs.py",
        },
    }


def test_the_first_file_that_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.json", "b.safetensors", "c.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "folder").mkdir()
    opened = Path.open

    def refused(path: Path, *arguments: Any) -> Any:
        if path.name == "b.safetensors":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments)

    assert why_unreadable(tmp_path) is None and why_unreadable(tmp_path / "no folder") is None
    monkeypatch.setattr(Path, "open", refused)
    assert why_unreadable(tmp_path) == f"{tmp_path}/b.safetensors: Permission denied"
    assert why_unreadable(tmp_path, "*.json") is None


def test_json_that_cannot_be_parsed_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    assert why_unreadable(tmp_path) is None
    (tmp_path / "b.json").write_text('{"a": ')
    assert str(why_unreadable(tmp_path)).startswith(f"{tmp_path}/b.json: no JSON (")
