"""A run's folder belongs to one config and one code."""

from collections.abc import Callable
from pathlib import Path

import pytest

from llava_mini.commands.run_folder import claim
from llava_mini.config import resolve, save
from llava_mini.errors import UserError


def test_a_finished_run_is_found_and_what_killed_attempts_left_is_removed(
    tmp_path: Path, killed_writer: Callable[..., Path]
) -> None:
    config = resolve([])
    (tmp_path / "checkpoints").mkdir()
    save(config, tmp_path / "config.yaml")
    left = [killed_writer(tmp_path / name) for name in ("predictions_val.npz", "checkpoints/last.ckpt")]
    assert not claim(tmp_path, config)
    assert not any(place.exists() for place in left)
    killed_writer(tmp_path / "result.json", "renamed")
    assert claim(tmp_path, config)
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["checkpoints", "config.yaml", "result.json"]


def test_a_folder_with_another_config_is_refused(tmp_path: Path) -> None:
    save(resolve([]), tmp_path / "config.yaml")
    with pytest.raises(UserError, match="holds a run with another config"):
        claim(tmp_path, resolve(["seed=7"]))
