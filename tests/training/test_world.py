"""The toy world's parts are made from the seed alone, and what is made is what a run starts from."""

import hashlib
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llava_mini.cli import main
from llava_mini.config import resolve
from llava_mini.errors import UserError
from llava_mini.stages.alignment import AlignmentStage
from llava_mini.training import world
from llava_mini.training.run import train_run
from llava_mini.training.world import make_tiny_world

TIMES = ("seconds", "cpu_seconds")
LANGUAGE = {"projector", "language_model"}
PARTS = {"stage0": {"vision_tower"}, "stage1": LANGUAGE, "uncompressed": LANGUAGE}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """recipe(folder, "key=value", ...): overrides of a world of seconds in folder; all share their data."""
    data = tmp_path_factory.mktemp("data")

    def make(folder: Path, *overrides: str) -> list[str]:
        own = {
            "world.out": folder / "tiny", "run_dir": folder / "run", "data.folder": data / "toyworld",
            "world.vision_scenes": 16, "world.vision_boards": 8, "world.vision_val_scenes": 8,
            "world.vision_batch_size": 4, "data.sizes.instruct-train": 12, "data.sizes.board-train": 12,
            "data.sizes.board-val": 8,
            "data.sizes.caption-train": 24, "data.sizes.caption-val": 8, "data.batch_size": 4,
            "trainer.max_steps": 3, "trainer.checkpoint_every": 2,
        }  # fmt: skip
        given = dict(item.split("=", 1) for item in overrides)
        return [f"{key}={value}" for key, value in {**own, **given}.items()]

    return make


@pytest.fixture(scope="module")
def made(recipe: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the world of seed 0."""
    folder = tmp_path_factory.mktemp("world")
    assert make_tiny_world(recipe(folder)) == folder / "tiny"
    return folder


def read_recipe(folder: Path) -> dict[str, Any]:
    """What recipe.json tells, less the place where it was made."""
    return json.loads((folder / "recipe.json").read_text().replace(str(folder.parents[1]), ""))


def test_every_checkpoint_has_its_recipe_and_hash(made: Path):
    assert sorted(path.name for path in (made / "tiny").iterdir()) == sorted(PARTS)
    for stage, parts in PARTS.items():
        folder = made / "tiny" / stage
        content, tensors = (folder / "model.safetensors").read_bytes(), load_file(folder / "model.safetensors")
        told = read_recipe(folder)
        assert told["sha256"] == hashlib.sha256(content).hexdigest()
        assert told["bytes"] == len(content)
        assert told["config"]["trainer"]["max_steps"] == 3
        assert told["metrics"]["seconds"] > 0
        assert {name.split(".")[0] for name in tensors} == parts
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert {"val/kind", "val/color", "val/digit"} <= read_recipe(made / "tiny" / "stage0")["metrics"].keys()
    assert {"val/loss", "val/word_accuracy/dense"} <= read_recipe(made / "tiny" / "uncompressed")["metrics"].keys()
    weights = read_recipe(made / "tiny" / "uncompressed")["config"]["model"]["weights"]
    assert [Path(folder).name for folder in weights] == ["stage0", "stage1"]


def test_a_run_starts_from_what_was_made(made: Path, smoke: Callable[..., list[str]]):
    stages = [made / "tiny" / stage for stage in ("stage0", "uncompressed")]
    places = [f"model.weights=[{stages[0]},{stages[1]}]", f"model.tokenizer={made / 'tiny' / 'stage1'}"]
    run_dir = train_run(resolve(smoke(*places, "trainer.max_steps=1")))
    assert json.loads((run_dir / "result.json").read_text())["status"] == "finished"
    saved, tower = load_file(run_dir / "model" / "model.safetensors"), load_file(stages[0] / "model.safetensors")
    assert all(torch.equal(saved[name], tensor.float()) for name, tensor in tower.items())
    trained = load_file(stages[1] / "model.safetensors")
    assert all(torch.allclose(saved[name], tensor.float(), atol=0.01) for name, tensor in trained.items())


def test_a_seed_makes_the_same_bytes_again_in_any_folder(made: Path, recipe: Callable[..., list[str]], tmp_path: Path):
    make_tiny_world(recipe(tmp_path))
    for stage in PARTS:
        first, again = made / "tiny" / stage, tmp_path / "tiny" / stage
        names = sorted(path.name for path in first.iterdir())
        assert names == sorted(path.name for path in again.iterdir())
        for name in set(names) - {"recipe.json"}:
            assert (first / name).read_bytes() == (again / name).read_bytes(), name
        told = [read_recipe(folder) for folder in (first, again)]
        for each in told:
            assert all(each["metrics"].pop(name) > 0 for name in TIMES)
        assert told[0] == told[1]


def test_a_finished_world_is_made_again_and_not_continued(made: Path, recipe: Callable[..., list[str]], tmp_path: Path):
    def stage1(*overrides: str) -> str:
        make_tiny_world(recipe(tmp_path, "world.stages=[1]", *overrides))
        return read_recipe(tmp_path / "tiny" / "stage1")["sha256"]

    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "stage0").symlink_to(made / "tiny" / "stage0")
    first = stage1()
    other = stage1("seed=1")
    assert other != first == stage1()


def test_an_interrupted_world_continues_where_it_was(
    made: Path,
    recipe: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    step, handler = AlignmentStage.training_step, signal.getsignal(signal.SIGINT)
    seen: list[int] = []

    def watched(stage: AlignmentStage, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 2 and not seen.count(2):
            seen.append(batch_idx)
            raise KeyboardInterrupt
        seen.append(batch_idx)
        return step(stage, batch, batch_idx)

    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "stage0").symlink_to(made / "tiny" / "stage0")
    monkeypatch.setattr(AlignmentStage, "training_step", watched)
    command = ["world", *recipe(tmp_path, "world.stages=[1]")]
    assert main(command) == 130
    signal.signal(signal.SIGINT, handler)  # Lightning ignores a second Ctrl-C while it ends
    assert "repeat the command" in capsys.readouterr().err
    assert not (tmp_path / "tiny" / "stage1" / "model.safetensors").exists()
    with pytest.raises(UserError, match="contains a run with another config"):
        make_tiny_world(recipe(tmp_path, "world.stages=[1]", "seed=1"))
    assert main(command) == 0
    assert seen == [0, 1, 2, 2]
    again, whole = (folder / "tiny" / "stage1" / "model.safetensors" for folder in (tmp_path, made))
    assert again.read_bytes() == whole.read_bytes()


def test_a_world_interrupted_while_it_is_written_is_not_trained_again(
    made: Path, recipe: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "stage0").symlink_to(made / "tiny" / "stage0")
    overrides = recipe(tmp_path, "world.stages=[1]", "trainer.checkpoint_every=3")
    with monkeypatch.context() as patch:
        patch.setattr(world, "write_checkpoint", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_tiny_world(overrides)
    with monkeypatch.context() as patch:
        patch.setattr(AlignmentStage, "training_step", interrupted)
        make_tiny_world(overrides)
    again, whole = (read_recipe(folder / "tiny" / "stage1") for folder in (tmp_path, made))
    assert again["sha256"] == whole["sha256"]
    assert again["metrics"]["val/loss"] == whole["metrics"]["val/loss"]


def test_stage_1_needs_a_tower(recipe: Callable[..., list[str]], tmp_path: Path):
    with pytest.raises(UserError, match=r"model\.weights: .*stage0/model\.safetensors is missing"):
        make_tiny_world(recipe(tmp_path, "world.stages=[1]"))


def test_stage_0_does_not_accumulate(recipe: Callable[..., list[str]], tmp_path: Path):
    overrides = recipe(tmp_path, "trainer.accumulate_grad_batches=2")
    with pytest.raises(UserError, match=r"^trainer\.accumulate_grad_batches=2: a step of stage 0 is one batch; all"):
        make_tiny_world(overrides)
    assert not any(tmp_path.iterdir())


def test_a_world_in_a_folder_of_any_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    trained: list[tuple[str, Any]] = []
    monkeypatch.setattr(world, "train_vision", lambda config, folder: trained.append((str(folder), None)))
    monkeypatch.setattr(world, "train_language", lambda config, folder: trained.append((str(folder), config.model)))
    out = tmp_path / "lr=1 (a) [b], c#é it's"
    make_tiny_world([f"world.out={out}"])
    (tower, _), (language, model), (start, questions) = trained
    assert (tower, language, start) == (f"{out}/stage0", f"{out}/stage1", f"{out}/uncompressed")
    assert model.weights == [f"{out}/stage0"] and model.tokenizer == f"{out}/stage1"
    assert questions.weights == [f"{out}/stage0", f"{out}/stage1"]
