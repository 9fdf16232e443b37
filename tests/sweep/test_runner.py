"""Sweeps of the stand-in: what is repeated and what is not, failures, kills, Ctrl-C, and a tracker."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from types import ModuleType

import pytest
from mlflow.tracking import MlflowClient

from llava_mini.errors import UserError
from llava_mini.sweep.folder import Sweep, only_sweep, read_sweep, write_sweep
from llava_mini.sweep.grid import expand
from llava_mini.sweep.launcher import Ended, Job, Launcher, Started
from llava_mini.sweep.runner import _changed, run_sweep
from llava_mini.tracking.mlflow import latest_sweep
from llava_mini.tracking.spool import Spool

Sweeper = Callable[..., tuple[int, list[str]]]

SWEEP_PROCESS = """
import sys
from pathlib import Path
sys.path.insert(0, {standin_folder!r})
sys.modules["mlflow"] = None  # what tracks nothing does without it
from standin import CODE_VERSION, resolve
from llava_mini.sweep.grid import expand
from llava_mini.sweep.launcher import LocalLauncher
from llava_mini.sweep.runner import run_sweep
sys.exit(run_sweep(
    expand(sys.argv[2:], resolve), arguments=sys.argv[2:], sweep_dir=Path(sys.argv[1]),
    launcher=LocalLauncher(max_parallel=2), command=[sys.executable, {standin!r}], code_version=CODE_VERSION,
    commit="c0ffee", service=None, tracker_uri=None, experiment="sweeps",
))
"""


@pytest.fixture
def runs_of(tmp_path: Path) -> Callable[[], dict[str, Path]]:
    """The run folders of the sweep by label."""
    return lambda: {path.name[:-9]: path for path in sorted((tmp_path / "sweep" / "runs").glob("*"))}


@pytest.fixture
def process(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """process(*arguments): the sweep in a process of its own."""
    standin = Path(__file__).with_name("standin.py")
    code = SWEEP_PROCESS.format(standin_folder=str(standin.parent), standin=str(standin))

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, str(tmp_path / "sweep"), *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    return start


def attempts(folder: Path) -> list[int]:
    """Process ids of the attempts at a run."""
    return [int(pid) for pid in (folder / "attempts").read_text().split()] if (folder / "attempts").exists() else []


def wait_for_attempts(runs_of: Callable[[], dict[str, Path]], count: int) -> list[int]:
    deadline = time.monotonic() + 60
    while len(pids := [pid for folder in runs_of().values() for pid in attempts(folder)]) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return pids


class Noting(Launcher):
    """Keeps the commands of its jobs and runs none."""

    commands: tuple[tuple[str, ...], ...] = ()
    parallel = 1

    def run(self, jobs: Sequence[Job]) -> Generator[Started | Ended, None, None]:
        self.commands = tuple(job.command for job in jobs)
        yield from ()


def test_a_run_is_given_its_folder_once_whatever_the_sweep_is_given(standin: ModuleType, tmp_path: Path) -> None:
    arguments, launcher = ["compressor.C=1", "run_dir=elsewhere"], Noting()
    run_sweep(
        expand(arguments, standin.resolve), arguments=arguments, sweep_dir=tmp_path, launcher=launcher,
        command=["train"], code_version="code", commit="c0ffee", service=None, tracker_uri=None,
        experiment="sweeps", say=str,
    )  # fmt: skip
    assert len(launcher.commands) == 2
    for command in launcher.commands:
        (folder,) = [part for part in command if part.startswith("run_dir=")]
        assert folder.startswith(f"run_dir={tmp_path}/runs/")


def test_all_runs_finish(sweep: Sweeper, runs_of: Callable[[], dict[str, Path]], tmp_path: Path) -> None:
    status, lines = sweep("compressor.C=1,2", "seed=0,1")
    assert status == 0
    assert set(runs_of()) == {
        f"{label}-s{seed}" for label in ("none-N0", "query-C1-N4", "query-C2-N4") for seed in (0, 1)
    }
    assert all(json.loads((folder / "result.json").read_text())["seed"] in (0, 1) for folder in runs_of().values())
    assert lines[0] == "6 runs: 6 to run, 3 side by side"
    assert lines[1].startswith("[0/6] started  none-N0-s0-")
    started = [line.split()[-1][:-9] for line in lines if " started " in line]
    of_a_seed = ["none-N0", "query-C2-N4", "query-C1-N4"]  # the longest first
    assert started == [f"{label}-s{seed}" for seed in (0, 1) for label in of_a_seed]
    assert any(line.startswith("[6/6] finished") and "exact match on validation" in line for line in lines)
    assert lines[-1] == "6 of 6 runs are finished, 0 failed"
    written = read_sweep(tmp_path / "sweep")
    assert (written.arguments, written.commit) == (["compressor.C=1,2", "seed=0,1"], "c0ffee")
    assert [run.label for run in written.runs][:2] == ["none-N0-s0", "query-C1-N4-s0"]


def test_what_is_finished_is_not_repeated(sweep: Sweeper, runs_of: Callable[[], dict[str, Path]]) -> None:
    sweep("compressor.C=1")
    status, lines = sweep("compressor.C=1,2")
    assert status == 0
    assert [len(attempts(folder)) for folder in runs_of().values()] == [1, 1, 1]
    assert lines[0].endswith("with other arguments (compressor.C=1, now 1,2): the runs that both ask for are kept")
    assert lines[1] == "3 runs: 2 finished before, 1 to run, 1 side by side"
    _, lines = sweep("compressor.C=1,2")
    assert lines == ["3 runs: 3 finished before, 0 to run", "3 of 3 runs are finished, 0 failed"]


def test_another_config_is_another_run(sweep: Sweeper, tmp_path: Path) -> None:
    sweep()
    sweep("trainer.max_steps=9")
    folders = sorted((tmp_path / "sweep" / "runs").glob("*"))
    assert [len(attempts(folder)) for folder in folders] == [1] * 4


def test_other_code_runs_again_and_loses_nothing(
    sweep: Sweeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep()
    before = {path: path.read_text() for path in tmp_path.rglob("result.json")}
    assert len(before) == 2
    monkeypatch.setenv("STANDIN_CODE_VERSION", "code-2")
    status, lines = sweep(code_version="code-2")
    assert (status, lines[1]) == (0, "2 runs: 2 to run, 2 side by side")
    assert "other code (commit c0ffee, whose working tree was changed since): its runs are kept" in lines[0]
    after = {path: path.read_text() for path in tmp_path.rglob("result.json")}
    assert len(after) == 4
    assert before.items() <= after.items()
    assert sweep(code_version="code-2")[1][0] == "2 runs: 2 finished before, 0 to run"


def test_code_that_changes_during_a_sweep_is_noticed(sweep: Sweeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN_CODE_VERSION", "code-2")
    status, lines = sweep()
    assert status == 1
    assert any("result.json is of another config or code" in line for line in lines)


def test_a_run_that_hangs_is_a_failure_with_its_reason_and_the_others_finish(sweep: Sweeper) -> None:
    start = time.monotonic()
    status, lines = sweep("standin.act=finish,600", idle_timeout=15.0)  # an import may take seconds on a busy machine
    assert status == 1 and time.monotonic() - start < 120
    why = "it wrote nothing for 15 s (launcher.idle_timeout) and was ended"
    assert any(line.startswith("  failed: query-C1-N4-act=600-s0-") and why in line for line in lines)
    assert any(line.startswith("2 of 4 runs are finished, 2 failed") for line in lines)


def test_failures_are_reported_and_tried_again(sweep: Sweeper, runs_of: Callable[[], dict[str, Path]]) -> None:
    status, lines = sweep("standin.act=finish,fail_once", "seed=3")
    assert status == 1
    assert any("FAILED   none-N0-act=fail_once-s3-" in line and "seed 3 <fails> & says so" in line for line in lines)
    assert lines[-4] == "2 of 4 runs are finished, 2 failed"
    assert lines[-3].startswith("  failed: none-N0-act=fail_once-s3-")
    assert "ValueError: seed 3 <fails> & says so (see /" in lines[-3]
    assert lines[-1].startswith("Give the same command again")
    status, lines = sweep("standin.act=finish,fail_once", "seed=3")
    assert status == 0
    assert {label: len(attempts(folder)) for label, folder in runs_of().items()} == {
        "none-N0-act=fail_once-s3": 2,
        "none-N0-act=finish-s3": 1,
        "query-C1-N4-act=fail_once-s3": 2,
        "query-C1-N4-act=finish-s3": 1,
    }
    assert not list(next(iter(runs_of().values())).glob("failure.json"))


@pytest.mark.parametrize(
    ("act", "error"),
    [
        ("die", "killed by SIGKILL; last line: it wrote nothing"),
        ("nothing", "ended without a result; last line: it wrote nothing"),
        ("noise", "last words"),
    ],
)
def test_why_a_run_failed(sweep: Sweeper, runs_of: Callable[[], dict[str, Path]], act: str, error: str) -> None:
    status, _ = sweep(f"standin.act={act}")
    assert status == 1
    for folder in runs_of().values():
        assert json.loads((folder / "failure.json").read_text()) == {"error": error}


def test_a_killed_run_does_not_touch_the_others(
    process: Callable[..., subprocess.Popen[str]], runs_of: Callable[[], dict[str, Path]]
) -> None:
    sweep = process("standin.act=2", "compressor.C=1,2,3")
    victim = wait_for_attempts(runs_of, 2)[0]
    killed = next(label for label, folder in runs_of().items() if victim in attempts(folder))
    os.kill(victim, signal.SIGKILL)
    output, _ = sweep.communicate(timeout=60)
    assert sweep.returncode == 1
    assert "3 of 4 runs are finished, 1 failed" in output
    assert "killed by SIGKILL" in output
    assert {label for label, folder in runs_of().items() if not (folder / "result.json").exists()} == {killed}


def test_ctrl_c_ends_all_and_leaves_all_resumable(
    process: Callable[..., subprocess.Popen[str]],
    sweep: Sweeper,
    runs_of: Callable[[], dict[str, Path]],
    is_running: Callable[[int], bool],
) -> None:
    running = process("standin.act=0.2,100", "compressor.C=1,2")
    pids = wait_for_attempts(runs_of, 3)  # a finished one and two that sleep, or about to
    time.sleep(0.5)
    start = time.monotonic()
    running.send_signal(signal.SIGINT)
    output, _ = running.communicate(timeout=120)
    assert time.monotonic() - start < 8
    assert running.returncode == 130, output
    assert not any(map(is_running, pids))
    assert "interrupted: " in output
    assert "Traceback" not in output
    assert "Give the same command again" in output
    finished = {label for label, folder in runs_of().items() if (folder / "result.json").exists()}
    assert finished
    assert not [folder for folder in runs_of().values() if (folder / "failure.json").exists()]
    before = {label: len(attempts(folder)) for label, folder in runs_of().items()}
    sweep("standin.act=0.2", "compressor.C=1,2")
    after = {label: len(attempts(folder)) for label, folder in runs_of().items()}
    assert all(before[label] == after[label] for label in finished)


def test_runs_die_with_a_sweep_that_is_killed(
    process: Callable[..., subprocess.Popen[str]],
    runs_of: Callable[[], dict[str, Path]],
    is_running: Callable[[int], bool],
) -> None:
    running = process("standin.act=100")
    pids = wait_for_attempts(runs_of, 2)
    running.kill()
    running.communicate()
    deadline = time.monotonic() + 5
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_sweeps_do_not_share_a_folder(sweep: Sweeper, tmp_path: Path) -> None:
    with only_sweep(tmp_path / "sweep"), pytest.raises(UserError, match="another sweep is running"):
        sweep()
    assert sweep()[0] == 0


def test_a_folder_that_is_continued_otherwise_is_reported(tmp_path: Path) -> None:
    first = Sweep(["seed=0", "tracking.uri=http://a:b@c", f"--out={tmp_path}"], "abc", "v1", "2026-01-01", [])
    assert list(_changed(tmp_path, first)) == []
    write_sweep(tmp_path, first)
    assert list(_changed(tmp_path, first)) == []
    other = Sweep(["seed=0,1", "tracking.uri=http://d:e@f", "a=b"], "def", "v2", "2026-01-02", [])
    assert list(_changed(tmp_path, other)) == [
        f"{tmp_path} was begun with other code (commit abc, now def): its runs are kept, and made again with this one",
        (
            f"{tmp_path} is continued with other arguments (seed=0, now 0,1; a=(none), now b): "
            "the runs that both ask for are kept"
        ),
    ]
    (tmp_path / "sweep.json").write_text("")
    (told,) = _changed(tmp_path, other)
    assert "sweep.json" in told and told.endswith("; it is written again, and finished runs are kept")


def test_a_folder_that_cannot_be_made_is_named(sweep: Sweeper, tmp_path: Path) -> None:
    (tmp_path / "sweep").write_text("")
    with pytest.raises(UserError, match=r"/sweep: cannot be written"):
        sweep()


def test_a_folder_with_odd_characters_works(standin: ModuleType, tmp_path: Path, sweep: Sweeper) -> None:
    status, _ = sweep("stage.note='a b, it\\'s <x>',plain")
    assert status == 0
    assert len({path.name for path in (tmp_path / "sweep" / "runs").glob("*")}) == 4


def test_a_sweep_is_a_parent_with_its_runs_as_children(
    sweep: Sweeper, runs_of: Callable[[], dict[str, Path]], tmp_path: Path, new_tracker: str
) -> None:
    uri = new_tracker
    status, _ = sweep("standin.act=finish", "tracking.uri=https://me:secret@tracker", tracker_uri=uri)
    assert status == 0
    parent_id = Spool(tmp_path / "sweep").run_id()
    assert parent_id is not None
    parent = MlflowClient(uri).get_run(parent_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["arguments"] == "standin.act=finish"
    assert parent.data.tags["mlflow.source.git.commit"] == "c0ffee"
    assert "secret" not in str(parent.data)
    assert parent_id in latest_sweep(uri, "http://here")[0]
    sweep("standin.act=fail", tracker_uri=uri)
    assert Spool(tmp_path / "sweep").run_id() == parent_id
    assert MlflowClient(uri).get_run(parent_id).info.status == "FAILED"


def test_a_tracker_that_is_down_does_not_stop_a_sweep(sweep: Sweeper, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, lines = sweep(tracker_uri=f"sqlite:///{tmp_path}/file/mlflow.db")
    assert status == 0
    assert "sent when this command is given again" in lines[-1]


def test_a_launcher_that_starts_nothing_is_no_success(standin: ModuleType, tmp_path: Path) -> None:
    lines: list[str] = []
    status = run_sweep(
        expand(["compressor.C=1"], standin.resolve), arguments=["compressor.C=1"], sweep_dir=tmp_path,
        launcher=Noting(), command=["train"], code_version="code", commit="c0ffee", service=None, tracker_uri=None,
        experiment="sweeps", say=lines.append,
    )  # fmt: skip
    assert status == 1 and lines[-2:] == [
        "0 of 2 runs are finished, 0 failed",
        "Give the same command again to run what is missing; finished runs are kept.",
    ]
