"""Every service of conf/tracker takes all that runs report, and takes it again; tests/test_extending.py adds one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from llava_mini.config import instantiate, resolve
from llava_mini.config.compose import options
from llava_mini.errors import UserError
from llava_mini.tracking.saved_view import View
from llava_mini.tracking.service import Service
from llava_mini.tracking.spool import DataInput, Spool
from llava_mini.tracking.tensorboard import TensorBoard
from llava_mini.tracking.tracker import Tracker, flush_spools, init_tracking


def report(folder: Path, service: Service, uri: str | None, parent: str | None = None) -> Tracker:
    """A tracker that is finished after reporting one line of each kind."""
    tracker = Tracker(folder, uri=uri, parent_run_id=parent, interval=0.05, service=service)
    tracker.log_params({"compressor": "query", "model": {"start": "a | b"}})
    tracker.log_metrics({"loss": 0.5}, step=3)
    tracker.set_tags({"commit": "abc"})
    tracker.log_inputs([DataInput("train", "ab" * 32, str(folder), 64, "training")])
    (folder / "report.html").write_text("")
    tracker.log_file("report.html")
    tracker.show(View("a sweep", [], ["C"], ["tokens"], "tokens"))
    assert tracker.finish(wait=60) == 0
    return tracker


@pytest.mark.parametrize("name", options("tracker"))
def test_a_service_takes_everything_twice(name: str, tmp_path: Path, new_tracker: str) -> None:
    service = instantiate(resolve([f"tracker={name}"]).tracker, "tracker")
    uri = {"mlflow": new_tracker}.get(name, str(tmp_path / "there"))
    assert init_tracking(uri, service=service) == service.address(uri) == uri
    parent = report(tmp_path / "parent", service, uri).run_id()
    child = report(tmp_path / "child", service, uri, parent).run_id()
    assert parent and child and parent != child
    spool = Spool(tmp_path / "child")
    origin = spool.origin()
    assert origin is not None
    origin.sent_bytes = origin.sent_extras_bytes = 0  # as if no reply had arrived
    spool._write_origin(origin)
    assert flush_spools([tmp_path / "child"], service=service) == 0
    assert spool.run_id() == child


def test_tensorboard_shows_metrics_params_and_tags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    service = TensorBoard()
    run = report(tmp_path / "runs" / "a", service, None).run_id()
    assert run == str(tmp_path / "tensorboard" / "llava-mini" / "a")
    shown = EventAccumulator(run).Reload()
    [point] = shown.Scalars("loss")
    assert (point.step, point.value) == (3, 0.5)
    texts = {
        tag: shown.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0].decode() for tag in ("params", "tags")
    }
    assert "| compressor | query |" in texts["params"] and r"| model.start | a \| b |" in texts["params"]
    assert "| commit | abc |" in texts["tags"]


def test_a_service_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in options("tracker"):
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setattr(f"llava_mini.tracking.{name}.find_spec", lambda _: None)
        with pytest.raises(UserError, match=f"^tracker={name}: .*pip install {name}; or tracking.enabled=false$"):
            instantiate(resolve([f"tracker={name}"]).tracker, "tracker")
