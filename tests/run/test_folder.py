"""A run's folder belongs to one config and one code."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llava_mini.config import resolve, save
from llava_mini.errors import UserError
from llava_mini.run.folder import claim
from llava_mini.run.provenance import code_version


def test_a_finished_run_is_found_and_what_killed_attempts_left_is_removed(
    tmp_path: Path, killed_writer: Callable[..., Path]
) -> None:
    (tmp_path / "checkpoints").mkdir()
    save(CONFIG, tmp_path / "config.yaml")
    left = [killed_writer(tmp_path / name) for name in ("predictions_val.npz", "checkpoints/last.ckpt")]
    assert not claim(tmp_path, CONFIG)
    assert not any(place.exists() for place in left)
    (tmp_path / "result.json").write_text('{"status": "finished"}')
    killed_writer(tmp_path / "predictions_test.npz", "renamed")
    assert claim(tmp_path, CONFIG)
    names = ["checkpoints", "config.yaml", "predictions_test.npz", "result.json"]
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == names


CONFIG = resolve([])


@pytest.mark.parametrize("name", ["checkpoints/last.ckpt", "history.jsonl", "runs/a/config.yaml", "notes.md"])
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match="and no config.yaml") as caught:
        claim(tmp_path, CONFIG)
    assert (caught.value.key, caught.value.value) == ("run_dir", tmp_path)
    assert name.partition("/")[0] in str(caught.value)


def test_logs_and_what_a_sweep_writes_may_be_there_before_a_run(tmp_path: Path) -> None:
    for name in ("log.txt", "slurm-1.out", "failure.json", "spool.jsonl", "tracking.json", "tracking.lock", ".hidden"):
        (tmp_path / name).write_text("{}")
    assert not claim(tmp_path, CONFIG)


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_a_damaged_record_of_the_code_says_what_to_do(tmp_path: Path, content: str) -> None:
    save(CONFIG, tmp_path / "config.yaml")
    (tmp_path / "code.json").write_text(content)
    with pytest.raises(UserError, match=r"code\.json.* not known which code .*name another folder or delete it"):
        claim(tmp_path, CONFIG)


def _with(**values: object) -> Any:
    """The config with other values, also with keys of other versions; a key's dots are two underscores."""
    config = CONFIG.to_dict()
    for key, value in values.items():
        *path, name = key.split("__")
        node = config
        for part in path:
            node = node[part]
        node[name] = value
    return SimpleNamespace(to_dict=lambda: config)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"seed": 7}, "seed=0, now 7; "),
        (
            {"seed": 7, "data__num_workers": 3, "launcher__max_parallel": 1},
            "seed=0, now 7 (data.num_workers, launcher.max_parallel differ too, and may); ",
        ),
        (
            {"choices__compressor": "none", "compressor": {"_target_": "none"}, "fusion__num_layers": 2},
            "compressor=query, now none; fusion.num_layers=4, now 2; ",
        ),
        ({"trainer__accumulate_grad_batches": 2}, "trainer.accumulate_grad_batches=null, now 2; "),
        ({"seed": 7, **{f"fusion__new{n}": n for n in range(5)}}, "fusion.new0=(none), now 0; "),
        ({"seed": 7, **{f"fusion__new{n}": n for n in range(5)}}, "; and 2 more; "),
        ({"seed": False}, "seed=0, now false; "),
        ({"inputs__weights": "0" * 16}, "another config: the content of model.weights; "),
    ],
)
def test_a_folder_with_another_config_names_what_differs(tmp_path: Path, changed: dict[str, object], told: str) -> None:
    save(CONFIG, tmp_path / "config.yaml")
    with pytest.raises(UserError) as refused:
        claim(tmp_path, _with(**changed))
    text = str(refused.value)
    assert text.startswith(f"run_dir={tmp_path}: contains a run with another config: ")
    assert told in text, text
    assert text.endswith("; give the same values, name another folder or delete it")


@pytest.mark.parametrize(
    "changed",
    [
        {"data__num_workers": 2},
        {"memory__activation_checkpointing": True},
        {"launcher__max_parallel": 1},
        {"tracking__enabled": False},
        {"run_dir": "elsewhere"},
        {"trainer__accumulate_grad_batches": 2, "trainer__devices": 2},
    ],
)
def test_what_changes_no_result_may_differ(tmp_path: Path, changed: dict[str, object]) -> None:
    save(_with(trainer__accumulate_grad_batches=4), tmp_path / "config.yaml")
    assert not claim(tmp_path, _with(**{"trainer__accumulate_grad_batches": 4, **changed}))


def test_other_code_is_reported_by_its_commits(tmp_path: Path) -> None:
    save(CONFIG, tmp_path / "config.yaml")
    (tmp_path / "code.json").write_text(json.dumps({"code_version": "old", "commit": "abc123"}))
    with pytest.raises(UserError, match=r"begun with other code \(commit abc123, now \w+"):
        claim(tmp_path, CONFIG)


@pytest.mark.parametrize("damaged", ["", '{"status": "fin', "[]"])
def test_a_damaged_result_is_none(tmp_path: Path, damaged: str, caplog: pytest.LogCaptureFixture) -> None:
    save(CONFIG, tmp_path / "config.yaml")
    (tmp_path / "code.json").write_text(json.dumps({"code_version": code_version(), "commit": "abc123"}))
    (tmp_path / "result.json").write_text(damaged)
    with caplog.at_level(logging.WARNING):
        assert not claim(tmp_path, CONFIG)
    assert f"{tmp_path}/result.json " in caplog.text
    assert "continues from its last checkpoint" in caplog.text
