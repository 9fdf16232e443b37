"""What docs/extending.md shows works as it stands there: a recipe, a launcher and a tracker of a user's own."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from llava_mini.cli import main
from llava_mini.config import instantiate, resolve
from llava_mini.sweep.launcher import Ended, Job, Started
from llava_mini.tracking.spool import DataInput
from llava_mini.tracking.tracker import Tracker

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
MINE = ("mine",)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the page's files are written where it says."""
    files = dict(re.findall(r"`(mine/[\w/.]+)`:\n\n```(?:python|yaml)\n(.*?)```", PAGE, re.DOTALL))
    assert len(files) == 7
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_recipe(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = resolve(["recipe=boards_c2"], MINE)
    assert (config.compressor.get("C"), config.trainer.max_steps, config.run_dir) == (2, 600, "runs/boards_c2")
    tiny = resolve([])
    assert (config.data, config.stage) == (tiny.data, tiny.stage), "it builds on the default recipe"
    assert main(["--config-dir", "mine", "config", "recipe=boards_c2"]) == 0
    assert "boards_c2" in capsys.readouterr().out
    assert main(["config", "recipe=boards_c2"]) == 2, "it is known with its folder alone"


def test_the_launcher(mine: Path) -> None:
    launcher = instantiate(resolve(["launcher=by_command"], MINE).launcher, "launcher", devices=1)
    jobs = [
        Job(name, (sys.executable, "-c", f"import os; print(os.environ['X'], {name!r}); exit({status})"), mine / name,
            {"X": "1"})
        for name, status in (("a", 0), ("b", 3))
    ]  # fmt: skip
    events = list(launcher.run(jobs))
    assert [type(event) for event in events] == [Started, Ended, Started, Ended] and launcher.parallel == 1
    assert [event.returncode for event in events[1::2]] == [0, 3]
    assert [(mine / name / "log.txt").read_text() for name in "ab"] == ["1 a\n", "1 b\n"]


def test_the_tracker(mine: Path) -> None:
    service = instantiate(resolve(["tracker=text_file"], MINE).tracker, "tracker")
    tracker = Tracker(mine / "run", interval=0.05, service=service)
    tracker.log_params({"compressor": {"C": 1}})
    tracker.log_metrics({"loss": 0.5}, step=3)
    tracker.log_inputs([DataInput("train", "ab" * 32, "data/train", 64, "training")])
    assert tracker.finish(wait=60) == 0
    lines = (mine / "reports" / "run.txt").read_text().splitlines()
    assert {"params 0 {'compressor.C': 1}", "metrics 3 {'loss': 0.5}"} <= set(lines)
    assert [line.split()[0] for line in lines].count("status") == 2


@pytest.mark.parametrize(
    ("name", "old", "new", "reason"),
    [
        (
            "lacking",
            "    def run(self, jobs):",
            "    def runs(self, jobs):",
            "TypeError: Can't instantiate abstract class",
        ),
        ("raising", "        self.prefix = prefix", "        raise OSError('no cluster')", "OSError: no cluster"),
    ],
)
def test_a_class_that_cannot_be_made_is_one_line(
    mine: Path, capsys: pytest.CaptureFixture[str], name: str, old: str, new: str, reason: str
) -> None:
    code = (mine / "mine" / "by_command.py").read_text()
    (mine / "mine" / f"{name}.py").write_text(code.replace(old, new))
    (mine / "mine" / "launcher" / f"{name}.yaml").write_text(f"_target_: {name}.ByCommand\nprefix: [nice]\n")
    assert main(["--config-dir", "mine", "sweep", "recipe=smoke", f"launcher={name}"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"llava-mini: launcher: {name}.ByCommand cannot be made ({reason}")
    assert printed.count("\n") == 1
