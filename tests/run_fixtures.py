"""Runs of seconds: the smoke recipe in a world of its own, on the shipped stage-0 and stage-1 checkpoints."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.several_ranks import MIXED_STEPS, Nursery, write_texts


@pytest.fixture(scope="session")
def world_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the data of all tests of this session."""
    return tmp_path_factory.mktemp("world")


@pytest.fixture(scope="session")
def smoke_in(world_dir: Path) -> Callable[..., list[str]]:
    """smoke_in(run_dir, "key=value", ...): overrides of a short run that tracks nothing."""

    def make(run_dir: Path, *overrides: str) -> list[str]:
        own = {
            "run_dir": str(run_dir),
            "tracking.enabled": "false",
            "data.folder": str(world_dir / "toyworld"),
        }
        given = dict(item.split("=", 1) for item in overrides)
        return ["recipe=smoke", *(f"{key}={value}" for key, value in {**own, **given}.items())]

    return make


@pytest.fixture
def smoke(smoke_in: Callable[..., list[str]], tmp_path: Path) -> Callable[..., list[str]]:
    """smoke("key=value", ...): overrides of a short run in tmp_path/run that tracks nothing."""
    return partial(smoke_in, tmp_path / "run")


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    made = Nursery(tmp_path_factory.mktemp("nursery") / "log.txt")
    yield made
    made.process.kill()
    made.process.wait()


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """arguments(run_dir, "key=value", ...): of a run of the smallest model on a mix of pictures and texts."""
    folder = tmp_path_factory.mktemp("resume")
    write_texts(folder / "texts", 9)
    own = {
        "recipe": "smoke", "tracking.enabled": "false", "data.folder": folder / "world", "data.features": "false",
        "data.sizes.instruct-train": 24, "data.sizes.instruct-val": 5, "data.max_bad_fraction": 1,
        "data.train": f"{{instruct-train: 2, {folder / 'texts'}: 1}}", "data.val": "instruct-val", "data.test": "null",
        "data.batch_size": 2, "data.eval_batch_size": 2,
        "trainer.max_steps": MIXED_STEPS, "trainer.val_every": MIXED_STEPS, "trainer.checkpoint_every": 1,
        "model.weights": "[]", "model.vision_config.num_hidden_layers": 1, "model.text_config.num_hidden_layers": 1,
        "fusion.num_layers": 1,
    }  # fmt: skip

    def make(run_dir: Path, *overrides: str) -> list[str]:
        given = dict(item.split("=", 1) for item in overrides)
        return [f"{key}={value}" for key, value in {**own, "run_dir": run_dir, **given}.items()]

    return make
