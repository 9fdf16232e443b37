"""A checkpoint is whole or not there, and reading one runs nothing that it says."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_mini.errors import UserError
from llava_mini.stages.checkpointing import AtomicCheckpointIO

CHECKPOINT: dict[str, Any] = {
    "state_dict": {"weight": torch.arange(1000.0)},
    "global_step": 3,
    "loops": {"done": [1, 2]},
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """`CHECKPOINT` in a folder that was not there."""
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(CHECKPOINT, path)
    return path


def test_what_is_saved_is_read_back(saved: Path):
    loaded = AtomicCheckpointIO().load_checkpoint(saved)
    assert torch.equal(loaded["state_dict"]["weight"], CHECKPOINT["state_dict"]["weight"])
    assert (loaded["global_step"], loaded["loops"]) == (3, {"done": [1, 2]})
    AtomicCheckpointIO().save_checkpoint({**CHECKPOINT, "global_step": 4}, saved)
    assert AtomicCheckpointIO().load_checkpoint(saved)["global_step"] == 4


def test_a_failure_while_writing_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch):
    before = saved.read_bytes()

    def fail(checkpoint: Any, file: Any) -> None:
        file.write(b"half of it")
        file.flush()
        assert [path.read_bytes() for path in saved.parent.rglob(saved.name) if path != saved] == [b"half of it"]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        AtomicCheckpointIO().save_checkpoint({**CHECKPOINT, "global_step": 4}, saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_what_a_killed_run_left_goes_with_its_next_checkpoint(saved: Path, killed_writer: Callable[[Path], Path]):
    left = killed_writer(saved)
    AtomicCheckpointIO().save_checkpoint({**CHECKPOINT, "global_step": 4}, saved)
    assert not left.exists() and list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_named(saved: Path, share: float):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"last\.ckpt: not a readable checkpoint") as caught:
        AtomicCheckpointIO().load_checkpoint(saved)
    assert "\n" not in str(caught.value) and "delete it and the run starts again" in str(caught.value)


def test_what_is_no_checkpoint_is_never_advised_to_be_trusted(tmp_path: Path):
    for name, content in (("text", b"not weights"), ("random", bytes(range(256)) * 12)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="not a readable checkpoint") as caught:
            AtomicCheckpointIO().load_checkpoint(tmp_path / name)
        assert "weights_only" not in str(caught.value)


def test_the_last_good_state_is_named(saved: Path):
    saved.write_bytes(saved.read_bytes()[:100])
    with pytest.raises(UserError, match=r"\); delete it and the run starts again$"):
        AtomicCheckpointIO().load_checkpoint(saved)
    AtomicCheckpointIO().save_checkpoint(CHECKPOINT, saved.with_name("best.ckpt"))
    with pytest.raises(UserError, match=r"\); put best\.ckpt in its place to continue from there, or delete it and"):
        AtomicCheckpointIO().load_checkpoint(saved)


def test_a_foreign_or_missing_file_is_named(tmp_path: Path):
    (tmp_path / "notes.ckpt").write_text("not weights at all\n")
    for name in ("notes.ckpt", "missing.ckpt"):
        with pytest.raises(UserError, match=f"{name}: not a readable checkpoint"):
            AtomicCheckpointIO().load_checkpoint(tmp_path / name)


class Opener:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, zipped: bool):
    checkpoint = {**CHECKPOINT, "extra": Opener(tmp_path / "made")}
    path = tmp_path / "last.ckpt"
    if zipped:
        torch.save(checkpoint, path)
    else:
        path.write_bytes(pickle.dumps(checkpoint))
    with pytest.raises(UserError, match="not a readable checkpoint"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)
    assert not (tmp_path / "made").exists()
