"""The journal alone: order, cut lines, resumption, one deliverer at a time."""

import json
from pathlib import Path

import pytest

from llava_mini.spool import LINES_A_CALL, Line, Origin, Spool


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
    spool.deliver(receiver.create, receiver.send)
    spool.append("metrics", {"loss": 3}, 3)
    Spool(tmp_path).deliver(receiver.create, receiver.send)
    assert receiver.steps() == [0, 1, 2, 3]
    assert receiver.created == 1
    assert spool.pending() == 0


def test_delivery_goes_on_where_it_broke(tmp_path: Path) -> None:
    spool, receiver = new_spool(tmp_path), Receiver(break_at=LINES_A_CALL + 5)
    for step in range(LINES_A_CALL + 10):
        spool.append("metrics", {"loss": 0.0}, step)
    with pytest.raises(ConnectionError):
        spool.deliver(receiver.create, receiver.send)
    assert spool.pending() == 10
    receiver.break_at = None
    spool.deliver(receiver.create, receiver.send)
    assert receiver.steps() == list(range(LINES_A_CALL + 10))


def test_a_status_is_sent_alone(tmp_path: Path) -> None:
    spool, receiver = new_spool(tmp_path), Receiver()
    spool.append("status", {"status": "RUNNING"})
    spool.append("params", {"a": 1})
    spool.append("metrics", {"b": 2})
    spool.append("status", {"status": "FINISHED"})
    spool.deliver(receiver.create, receiver.send)
    kinds = [[line.kind for line in group] for group in receiver.groups]
    assert kinds == [["status"], ["params", "metrics"], ["status"]]


def test_a_line_cut_by_a_kill_is_passed_over(tmp_path: Path) -> None:
    spool, receiver = new_spool(tmp_path), Receiver()
    spool.append("metrics", {"loss": 0}, 0)
    with spool.journal.open("ab") as journal:
        journal.write(b'{"kind": "metrics", "values": {"loss": 1}')
    assert spool.pending() == 1  # whoever writes may still be at it
    resumed = new_spool(tmp_path)
    resumed.append("metrics", {"loss": 2}, 2)
    resumed.deliver(receiver.create, receiver.send)
    assert receiver.steps() == [0, 2]


def test_a_resumed_run_keeps_its_tracker_run(tmp_path: Path) -> None:
    first, receiver = new_spool(tmp_path), Receiver()
    first.append("metrics", {"loss": 0}, 0)
    first.deliver(receiver.create, receiver.send)
    again = new_spool(tmp_path)
    again.append("metrics", {"loss": 1}, 1)
    again.deliver(receiver.create, receiver.send)
    assert (receiver.created, receiver.steps()) == (1, [0, 1])


def test_another_tracker_gets_everything(tmp_path: Path) -> None:
    spool, receiver = new_spool(tmp_path), Receiver()
    spool.append("metrics", {"loss": 0}, 0)
    spool.deliver(receiver.create, receiver.send)
    spool.redirect("elsewhere", "parent")
    spool.deliver(receiver.create, receiver.send)
    origin = spool.origin()
    assert origin is not None
    assert (origin.uri, origin.parent_run_id) == ("elsewhere", "parent")
    assert (receiver.created, receiver.steps()) == (2, [0, 0])


def test_only_one_delivers_at_a_time(tmp_path: Path) -> None:
    spool = new_spool(tmp_path)
    spool.append("metrics", {"loss": 0}, 0)

    def send(origin: Origin, lines: list[Line]) -> None:
        with pytest.raises(BlockingIOError):
            Spool(tmp_path).deliver(lambda _: "run-2", lambda *_: None)

    spool.deliver(lambda _: "run-1", send)
    assert spool.pending() == 0


def test_values_that_json_does_not_know_become_text(tmp_path: Path) -> None:
    spool = new_spool(tmp_path)
    spool.append("params", {"folder": Path("a/b")})
    assert json.loads(spool.journal.read_text())["values"] == {"folder": "a/b"}


def test_a_folder_without_a_spool_is_empty(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "nothing")
    assert (spool.pending(), spool.origin()) == (0, None)
