"""The shipped mix of scenes, clips and texts trains from end to end, and its two controls show other frames only."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from llava_mini.config import resolve
from llava_mini.errors import UserError
from llava_mini.training.run import assemble, train_run

SIZES = {
    "instruct-train": 24, "instruct-val": 6, "instruct-test": 6, "clip-train": 24, "clip-val": 6, "clip-test": 6,
    "text-train": 24, "text-val": 6, "text-test": 6,
}  # fmt: skip


@pytest.fixture
def overrides(world_dir: Path, tmp_path: Path) -> list[str]:
    """Of a run of three steps in a small world."""
    own = {
        "recipe": "tiny_video",
        "trainer.max_steps": 3,
        "trainer.val_every": 3,
        "trainer.checkpoint_every": 3,
        "data.batch_size": 10,
        "data.folder": world_dir / "toymix",
        "run_dir": tmp_path / "run",
        "tracking.enabled": "false",
        **{f"data.sizes.{name}": count for name, count in SIZES.items()},
    }
    return [f"{key}={value}" for key, value in own.items()]


def test_the_mix_trains_and_every_kind_is_scored(overrides: list[str]):
    run_dir = train_run(resolve(overrides))
    losses = [json.loads(line) for line in (run_dir / "history.jsonl").read_text().splitlines()]
    keys = [key for line in losses for key in line["keys"]]
    assert len(keys) == 30
    for name in ("instruct-train", "clip-train", "text-train"):
        assert any(key.startswith(name) for key in keys)
    answers = np.load(run_dir / "predictions_test.npz")
    counts = {kind: int((answers["kind"] == kind).sum()) for kind in np.unique(answers["kind"]).tolist()}
    kinds = resolve(overrides).data.kinds
    assert set(counts) == set(kinds)
    assert all(count == (6 if kind.startswith("clip") else 12) for kind, count in counts.items())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.val=[text-val, text-val]", "data.val: text-val is given twice; allowed is each set once"),
        ("data.val=[/mine, /mine/]", "data.val: /mine/ is given twice"),
        ("data.max_length=1", "data.max_length=1: input should be greater than or equal to 2"),
    ],
)
def test_a_mistake_in_what_is_read_is_one_line(overrides: list[str], override: str, message: str):
    with pytest.raises(UserError) as caught:
        resolve([*overrides, override])
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_a_share_that_is_too_small_is_refused_before_data_are_made(overrides: list[str], world_dir: Path):
    config = resolve([*overrides, "data.train={text-train: 1, clip-train: 1e-9}", f"data.folder={world_dir}/no"])
    with pytest.raises(
        UserError,
        match=r"^data\.train=.*weight 1e-09 of a mixture gets no place among 1000.*1/1000 of the sum$",
    ):
        assemble(config)
    assert not (world_dir / "no").exists()


def test_controls_change_which_frames_are_seen_and_nothing_else(overrides: list[str]):
    batches = {}
    for name, control in {"all": [], "one": ["data.max_frames=1"], "mixed": ["data.shuffle_frames=true"]}.items():
        config = resolve([*overrides, "data.val=clip-val", "data.features=false", *control])
        batches[name] = next(iter(assemble(config).datamodule.val_dataloader()))
    whole, one, mixed = batches["all"], batches["one"], batches["mixed"]
    assert whole.pixel_values is not None and one.pixel_values is not None and mixed.pixel_values is not None
    assert whole.keys == one.keys == mixed.keys
    assert int(whole.num_frames.min()) >= 4
    assert one.num_frames.tolist() == [1] * 6
    assert mixed.num_frames.tolist() == whole.num_frames.tolist()
    starts = [0, *whole.num_frames.cumsum(0).tolist()]
    for number, (start, end) in enumerate(pairwise(starts)):
        frames, shuffled = whole.pixel_values[start:end], mixed.pixel_values[start:end]
        assert torch.equal(one.pixel_values[number], frames[(end - start) // 2])
        assert sorted(frame.sum().item() for frame in frames) == sorted(frame.sum().item() for frame in shuffled)
    assert not torch.equal(whole.pixel_values, mixed.pixel_values)
