"""How a run stands, by what lies in its folder."""

import json
from pathlib import Path
from types import ModuleType

import pytest

from llava_mini.errors import UserError
from llava_mini.sweep.folder import (
    Outcome,
    Sweep,
    forget_failure,
    outcome,
    read_sweep,
    record_failure,
    run_folder,
    write_json,
    write_sweep,
)
from llava_mini.sweep.grid import Run, expand


@pytest.fixture
def run(standin: ModuleType) -> Run:
    return expand([], standin.resolve)[1]


def test_the_states_of_a_run(run: Run, standin: ModuleType, tmp_path: Path) -> None:
    config = standin.resolve(run.overrides)
    assert outcome(tmp_path, run, "v1") == Outcome("interrupted")
    record_failure(tmp_path, "ValueError: no")
    assert outcome(tmp_path, run, "v1") == Outcome("failed", error="ValueError: no")
    forget_failure(tmp_path)
    assert outcome(tmp_path, run, "v1").state == "interrupted"
    standin.leave_result(tmp_path, config, "v1")
    assert outcome(tmp_path, run, "v1").state == "finished"
    assert outcome(tmp_path, run, "v2").state == "failed"
    (tmp_path / "result.json").write_text(json.dumps({"status": "finished"})[:-3])
    damaged = outcome(tmp_path, run, "v1")
    assert damaged.state == "failed" and str(damaged.error).startswith("result.json is damaged")


def test_a_folder_is_of_one_config_and_code(run: Run, standin: ModuleType, tmp_path: Path) -> None:
    other = expand(["trainer.max_steps=3"], standin.resolve)[1]
    assert run.label == other.label
    folders = {run_folder(tmp_path, run, "v1"), run_folder(tmp_path, run, "v2"), run_folder(tmp_path, other, "v1")}
    assert len(folders) == 3
    assert all(folder.name.startswith("query-C1-N4-s0-") for folder in folders)


def test_a_sweep_is_read_as_it_was_written(run: Run, tmp_path: Path) -> None:
    sweep = Sweep(["a=1"], "commit", "v1", "2026-01-01", [run])
    write_sweep(tmp_path, sweep)
    assert read_sweep(tmp_path) == sweep


def test_no_folder_of_a_sweep_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not the folder of a sweep"):
        read_sweep(tmp_path / "elsewhere")


def test_json_is_strict_and_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
