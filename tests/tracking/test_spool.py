"""The journal alone: order, cut lines, full disks, resumption, one deliverer at a time."""

import json
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

import pytest

from llava_mini.tracking.spool import LINES_A_CALL, DataInput, Line, Origin, Spool, close_run


def new_spool(folder: Path) -> Spool:
    spool = Spool(folder)
    spool.create(Origin("uri", "experiment", "name"))
    return spool


class Receiver:
    """Stands in for a tracker; can break before a given line."""

    def __init__(self, break_at: int | None = None) -> None:
        self.groups: list[list[Line]] = []
        self.break_at = break_at
        self.created = 0

    def create(self, origin: Origin) -> str:
        self.created += 1
        return "run-1"

    def send(self, origin: Origin, lines: list[Line]) -> None:
        assert origin.run_id == "run-1"
        if any(line.step == self.break_at for line in lines):
            raise ConnectionError("down")
        self.groups.append(lines)

    def steps(self) -> list[int]:
        return [line.step for group in self.groups for line in group]


def test_lines_arrive_once_and_in_order(tmp_path: Path) -> None:
    spool, receiver = new_spool(tmp_path), Receiver()
    for step in range(3):
        spool.append("metrics", {"loss": step}, step)
    assert spool.pending() == 3
    spool.deliver("reports", receiver.create, receiver.send)
    spool.append("metrics", {"loss": 3}, 3)
    Spool(tmp_path).deliver("reports", receiver.create, receiver.send)
    assert receiver.steps() == [0, 1, 2, 3]
    assert receiver.created == 1
    assert spool.pending() == 0


def test_delivery_continues_where_it_broke(tmp_path: Path) -> None:
    spool, receiver = new_spool(tmp_path), Receiver(break_at=LINES_A_CALL + 5)
    for step in range(LINES_A_CALL + 10):
        spool.append("metrics", {"loss": 0.0}, step)
    with pytest.raises(ConnectionError):
        spool.deliver("reports", receiver.create, receiver.send)
    assert spool.pending() == 10
    receiver.break_at = None
    spool.deliver("reports", receiver.create, receiver.send)
    assert receiver.steps() == list(range(LINES_A_CALL + 10))


def test_a_status_is_sent_alone(tmp_path: Path) -> None:
    spool, receiver = new_spool(tmp_path), Receiver()
    spool.append("status", {"status": "RUNNING"})
    spool.append("params", {"a": 1})
    spool.append("metrics", {"b": 2})
    spool.append("status", {"status": "FINISHED"})
    spool.deliver("reports", receiver.create, receiver.send)
    kinds = [[line.kind for line in group] for group in receiver.groups]
    assert kinds == [["status"], ["params", "metrics"], ["status"]]


def test_files_inputs_and_views_are_sent_alone_and_hold_back_no_report(tmp_path: Path) -> None:
    spool, receiver = new_spool(tmp_path), Receiver(break_at=7)
    spool.append("file", {"path": "model"}, 7)
    spool.append("metrics", {"loss": 0}, 0)
    spool.append("inputs", {"datasets": []}, 1)
    spool.append("view", {"name": "sweep"}, 2)
    spool.append("status", {"status": "FINISHED"}, 3)
    spool.deliver("reports", receiver.create, receiver.send)
    with pytest.raises(ConnectionError):
        spool.deliver("extras", receiver.create, receiver.send)
    assert receiver.steps() == [0, 3]
    assert (spool.pending("reports"), spool.pending("extras"), spool.pending()) == (0, 3, 3)
    receiver.break_at = None
    spool.append("metrics", {"loss": 4}, 4)
    Spool(tmp_path).deliver("extras", receiver.create, receiver.send)
    assert [[line.kind for line in group] for group in receiver.groups[2:]] == [["file"], ["inputs"], ["view"]]
    assert (spool.pending("reports"), spool.pending("extras")) == (1, 0)


def test_the_inputs_that_a_run_has_reported(tmp_path: Path) -> None:
    spool = new_spool(tmp_path)
    first, second = (DataInput(name, "ab" * 32, f"data/{name}", 64, "training") for name in ("one", "two"))
    for inputs in ([first], [first, second]):  # a run that was resumed, with one set more
        spool.append("inputs", {"datasets": [asdict(each) for each in inputs]})
    assert spool.inputs() == [first, second]
    assert Spool(tmp_path / "nothing").inputs() == []


def test_how_a_run_ended_is_kept_after_a_line_cut_by_its_kill(tmp_path: Path) -> None:
    spool, receiver = new_spool(tmp_path), Receiver()
    spool.append("metrics", {"loss": 0}, 0)
    with spool.journal.open("ab") as journal:
        journal.write(b'{"kind": "metrics", "values": {"loss": 1}')
    close_run(tmp_path, "KILLED")
    spool.deliver("reports", receiver.create, receiver.send)
    assert [group[0].values for group in receiver.groups] == [{"loss": 0}, {"status": "KILLED"}]


def test_a_full_disk_loses_lines_with_one_warning_and_nothing_else(
    tmp_path: Path, full_disk: Callable[[int], AbstractContextManager[None]], caplog: pytest.LogCaptureFixture
) -> None:
    spool, receiver = new_spool(tmp_path), Receiver()
    spool.append("metrics", {"loss": 0}, 0)
    with full_disk(spool.journal.stat().st_size + 20), caplog.at_level(logging.WARNING):
        spool.append("metrics", {"loss": 1}, 1)  # 20 bytes of it are written
        spool.append("metrics", {"loss": 2}, 2)
    spool.append("metrics", {"loss": 3}, 3)
    spool.deliver("reports", receiver.create, receiver.send)
    assert receiver.steps() == [0, 3]
    assert [r.message for r in caplog.records if "reports are lost" in r.message] == [caplog.messages[0]]


def test_a_disk_that_is_full_from_the_start_ends_nothing(
    tmp_path: Path, full_disk: Callable[[int], AbstractContextManager[None]], caplog: pytest.LogCaptureFixture
) -> None:
    with full_disk(0), caplog.at_level(logging.WARNING):
        spool = new_spool(tmp_path / "run")
        spool.append("metrics", {"loss": 0})
    assert (spool.pending(), spool.run_id(), len(caplog.records)) == (0, None, 1)


def test_a_line_cut_by_a_kill_is_passed_over(tmp_path: Path) -> None:
    spool, receiver = new_spool(tmp_path), Receiver()
    spool.append("metrics", {"loss": 0}, 0)
    with spool.journal.open("ab") as journal:
        journal.write(b'{"kind": "metrics", "values": {"loss": 1}')
    assert spool.pending() == 1  # whoever writes may still be at it
    resumed = new_spool(tmp_path)
    resumed.append("metrics", {"loss": 2}, 2)
    resumed.deliver("reports", receiver.create, receiver.send)
    assert receiver.steps() == [0, 2]


def test_a_resumed_run_keeps_its_tracker_run(tmp_path: Path) -> None:
    first, receiver = new_spool(tmp_path), Receiver()
    first.append("metrics", {"loss": 0}, 0)
    first.deliver("reports", receiver.create, receiver.send)
    again = new_spool(tmp_path)
    again.append("metrics", {"loss": 1}, 1)
    again.deliver("reports", receiver.create, receiver.send)
    assert (receiver.created, receiver.steps()) == (1, [0, 1])


def test_another_tracker_gets_everything(tmp_path: Path) -> None:
    spool, receiver = new_spool(tmp_path), Receiver()
    spool.append("metrics", {"loss": 0}, 0)
    spool.deliver("reports", receiver.create, receiver.send)
    spool.redirect("elsewhere", "parent")
    spool.deliver("reports", receiver.create, receiver.send)
    origin = spool.origin()
    assert origin is not None
    assert (origin.uri, origin.parent_run_id) == ("elsewhere", "parent")
    assert (receiver.created, receiver.steps()) == (2, [0, 0])


def test_only_one_delivers_at_a_time(tmp_path: Path) -> None:
    spool = new_spool(tmp_path)
    spool.append("metrics", {"loss": 0}, 0)

    def send(origin: Origin, lines: list[Line]) -> None:
        with pytest.raises(BlockingIOError):
            Spool(tmp_path).deliver("reports", lambda _: "run-2", lambda *_: None)

    spool.deliver("reports", lambda _: "run-1", send)
    assert spool.pending() == 0


def test_values_that_json_does_not_know_become_text(tmp_path: Path) -> None:
    spool = new_spool(tmp_path)
    spool.append("params", {"folder": Path("a/b")})
    assert json.loads(spool.journal.read_text())["values"] == {"folder": "a/b"}


def test_a_folder_without_a_spool_is_empty(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "nothing")
    assert (spool.pending(), spool.origin()) == (0, None)
