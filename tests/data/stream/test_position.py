"""A run that was stopped anywhere goes on as if it had not been: samples, losses, validations, logged steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor

from llava_mini.batch import VLMBatch
from llava_mini.data.stream.callbacks import StreamPosition
from llava_mini.data.stream.datamodule import Mix, VLMDataModule
from llava_mini.errors import UserError

MakeModule = Callable[..., VLMDataModule]
Fit = Callable[..., Trainer]

pytestmark = [
    pytest.mark.filterwarnings("ignore:The .*dataloader.* does not have many workers"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


class StoppedError(Exception):
    """In place of a kill."""


class Recorder(LightningModule):
    """Notes step, keys and loss of every batch, and when it was validated; stops the run when it is told to.

    The loss depends on all that a checkpoint has to restore: weight, momentum, rate, batch.
    """

    def __init__(self, stop_at: int | None = None, reads_length: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.stop_at, self.reads_length = stop_at, reads_length
        self.trained: list[tuple[int, list[str], float]] = []
        self.validated: list[int] = []

    def training_step(self, batch: VLMBatch, index: int) -> Tensor:
        if len(self.trained) == self.stop_at:
            raise StoppedError
        loss = (self.weight - batch.input_ids.float().mean() / 10) ** 2
        self.trained.append((self.global_step, batch.keys, loss.item()))
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: VLMBatch, index: int) -> None:
        self.validated.append(self.global_step)

    def configure_optimizers(self) -> Any:
        if self.reads_length:  # makes the loader of training before its state is there
            assert self.trainer.estimated_stepping_batches > 0
        optimizer = torch.optim.SGD(self.parameters(), 0.03, momentum=0.9)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.7), "interval": "step"}]

    def steps(self) -> dict[int, list[str]]:
        """The keys of every step."""
        found: dict[int, list[str]] = {}
        for step, keys, _ in self.trained:
            found.setdefault(step, []).extend(keys)
        return found


class Losses(DummyLogger):
    """Keeps (step, loss) of what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.seen += [(step, metrics["loss"])] if "loss" in metrics else []


class SaveBehind(Callback):
    """Saves a checkpoint behind a batch, whether or not a step ends there."""

    def __init__(self, batch: int, path: Path) -> None:
        self.batch, self.path = batch, path

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self.batch:
            trainer.save_checkpoint(self.path)


@pytest.fixture
def train(fit: Fit) -> Fit:
    """train(recorder, data, folder, *callbacks, accumulate=2, steps=6): checkpoints are `folder`/step=N.ckpt."""

    def run(
        recorder: Recorder, data: VLMDataModule, folder: Path, *callbacks: Callback,
        accumulate: int = 2, steps: int = 6, **options: Any,
    ) -> Trainer:  # fmt: skip
        keep = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
        options = {"enable_checkpointing": True, "accumulate": accumulate, **options}
        return fit(recorder, data, steps, [keep, StreamPosition(data), *callbacks], **options)

    return run


@pytest.fixture
def whole(texts: MakeModule, train: Fit, tmp_path: Path) -> tuple[Recorder, Losses]:
    """A run of 6 steps of 2 batches of 2 of 9 samples, so nearly three epochs, that nothing stops."""
    recorder, losses = Recorder(), Losses()
    train(recorder, texts(), tmp_path / "whole", logger=losses)
    assert [step for step, _, _ in recorder.trained] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    keys = [key for step in recorder.steps().values() for key in step]
    assert sorted(keys[:9]) == sorted(keys[9:18]) == [f"{i:02d}" for i in range(9)]
    assert recorder.validated == [2, 2, 4, 4, 6, 6]
    assert [step for step, _ in losses.seen] == [0, 1, 2, 3, 4, 5]
    return recorder, losses


def assert_goes_on(recorder: Recorder, losses: Losses, whole: tuple[Recorder, Losses], steps: int) -> None:
    """The run is the rest of the whole one from a step on."""
    assert recorder.trained == whole[0].trained[2 * steps :]
    assert recorder.weight.item() == whole[0].weight.item()
    assert recorder.validated == [step for step in whole[0].validated if step > steps]
    assert losses.seen == whole[1].seen[steps:]


def position_in(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, weights_only=True)["callbacks"]["StreamPosition"]["position"])


@pytest.mark.parametrize(("stop_at", "workers"), [(2, 0), (3, 0), (6, 0), (11, 0), (5, 2), (8, 2)])
def test_a_run_stopped_at_any_batch_continues_as_if_nothing_had_happened(
    texts: MakeModule, train: Fit, tmp_path: Path, whole: tuple[Recorder, Losses], stop_at: int, workers: int
) -> None:
    stopped, resumed, losses = Recorder(stop_at), Recorder(), Losses()
    with pytest.raises(StoppedError):  # by then workers have made more batches
        train(stopped, texts(num_workers=workers), tmp_path / "stopped")
    assert stopped.trained == whole[0].trained[:stop_at]
    steps = stop_at // 2
    last = tmp_path / "stopped" / f"step={steps}.ckpt"
    train(resumed, texts(num_workers=workers), tmp_path / "stopped", resume=last, logger=losses)
    assert_goes_on(resumed, losses, whole, steps)  # what was accumulated since the last step is done again


@pytest.mark.parametrize("behind", [0, 1, 2, 7, 8, 11])
def test_a_checkpoint_from_within_a_step_is_of_the_step_before(
    texts: MakeModule, train: Fit, tmp_path: Path, whole: tuple[Recorder, Losses], behind: int
) -> None:
    saved, steps = tmp_path / "saved.ckpt", (behind + 1) // 2
    train(Recorder(), texts(), tmp_path / "first", SaveBehind(behind, saved))
    assert position_in(saved) == 4 * steps
    resumed, losses = Recorder(), Losses()
    train(resumed, texts(), tmp_path / "second", resume=saved, logger=losses)
    assert_goes_on(resumed, losses, whole, steps)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_checkpoint_of_a_validation_continues_after_it(
    texts: MakeModule, train: Fit, tmp_path: Path, whole: tuple[Recorder, Losses]
) -> None:
    class Score(Callback):
        def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            pl_module.log("score", float(trainer.global_step))

    best = ModelCheckpoint(
        tmp_path, "best-{step}", monitor="score", mode="max", save_top_k=-1, save_on_train_epoch_end=False
    )
    train(Recorder(), texts(), tmp_path / "first", best, Score())
    for steps in (2, 4):
        resumed, losses = Recorder(), Losses()
        train(resumed, texts(), tmp_path / "second", resume=tmp_path / f"best-step={steps}.ckpt", logger=losses)
        assert_goes_on(resumed, losses, whole, steps)


@pytest.mark.parametrize(("batch_size", "accumulate"), [(4, 1), (1, 4)])
def test_a_step_may_be_distributed_differently(
    texts: MakeModule, train: Fit, tmp_path: Path, whole: tuple[Recorder, Losses], batch_size: int, accumulate: int
) -> None:
    recorder, losses = Recorder(), Losses()
    train(
        recorder, texts(batch_size, num_batches=6 * accumulate), tmp_path / "changed",
        accumulate=accumulate, resume=tmp_path / "whole" / "step=3.ckpt", logger=losses,
    )  # fmt: skip
    assert recorder.steps() == {step: keys for step, keys in whole[0].steps().items() if step >= 3}
    assert [len(keys) for _, keys, _ in recorder.trained] == [batch_size] * (3 * accumulate)
    assert recorder.validated == [4, 4, 6, 6]
    assert [step for step, _ in losses.seen] == [3, 4, 5]
    assert position_in(tmp_path / "changed" / "step=6.ckpt") == 24


def test_the_number_of_ranks_may_change(
    texts: MakeModule, train: Fit, tmp_path: Path, whole: tuple[Recorder, Losses]
) -> None:
    class Noted(Callback):
        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            assert isinstance(pl_module, Recorder)
            torch.save(pl_module.steps(), tmp_path / f"rank{trainer.global_rank}.pt")

    expected = whole[0].steps()
    two_ranks = texts(num_batches=6, num_workers=1)
    train(
        Recorder(), two_ranks, tmp_path / "more", Noted(),
        accumulate=1, resume=tmp_path / "whole" / "step=3.ckpt", devices=2, strategy="ddp_fork",
    )  # fmt: skip
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert [sorted(rank) for rank in ranks] == [[3, 4, 5]] * 2
    assert [ranks[0][step] + ranks[1][step] for step in (3, 4, 5)] == [expected[step] for step in (3, 4, 5)]
    saved = tmp_path / "more" / "step=5.ckpt"
    assert position_in(saved) == 20, "the samples of all ranks, whichever wrote the checkpoint"
    fewer = Recorder()
    train(fewer, texts(), tmp_path / "fewer", resume=saved)
    assert fewer.steps() == {5: expected[5]}


def test_asking_for_the_length_of_the_run_before_training_loses_nothing(
    texts: MakeModule, train: Fit, tmp_path: Path, whole: tuple[Recorder, Losses]
) -> None:
    resumed, losses = Recorder(reads_length=True), Losses()
    train(resumed, texts(), tmp_path / "second", resume=tmp_path / "whole" / "step=4.ckpt", logger=losses)
    assert_goes_on(resumed, losses, whole, 4)


def test_a_finished_run_does_nothing_more_unless_it_is_made_longer(
    texts: MakeModule, train: Fit, tmp_path: Path, whole: tuple[Recorder, Losses]
) -> None:
    last, again, more = tmp_path / "whole" / "step=6.ckpt", Recorder(), Recorder()
    train(again, texts(), tmp_path / "again", resume=last)
    assert again.trained == []
    train(more, texts(num_batches=16), tmp_path / "more", steps=8, resume=last)
    longer = Recorder()
    train(longer, texts(num_batches=16), tmp_path / "longer", steps=8)
    assert more.trained == longer.trained[12:]


def test_another_plan_is_refused(texts: MakeModule, train: Fit, tmp_path: Path, whole: tuple[Recorder, Losses]) -> None:
    training, other = (texts().splits[split].readers[0] for split in ("train", "val"))
    mixes = [Mix([other]), Mix([training], [1.0]), Mix([training, other])]
    for changes in ({"seed": 1}, *({"splits": {"train": mix, "val": Mix([other])}} for mix in mixes)):
        with pytest.raises(UserError, match=r"step=3\.ckpt was made with other training data, weights or seed"):
            train(Recorder(), texts(**changes), tmp_path / "second", resume=tmp_path / "whole" / "step=3.ckpt")


def test_another_number_of_samples_a_step_is_refused(
    texts: MakeModule, train: Fit, tmp_path: Path, whole: tuple[Recorder, Losses]
) -> None:
    message = r"was made with 4 samples a step and this run has 2; batch_size x devices x accumulate_grad_batches must"
    with pytest.raises(UserError, match=message):
        train(Recorder(), texts(), tmp_path / "second", accumulate=1, resume=tmp_path / "whole" / "step=3.ckpt")


def test_a_checkpoint_without_a_position_is_refused(
    texts: MakeModule, train: Fit, tmp_path: Path, whole: tuple[Recorder, Losses]
) -> None:
    saved = tmp_path / "whole" / "step=3.ckpt"
    checkpoint = torch.load(saved, weights_only=True)
    del checkpoint["callbacks"]["StreamPosition"]
    torch.save(checkpoint, saved)
    with pytest.raises(UserError, match=r"step=3\.ckpt keeps no position in the data"):
        train(Recorder(), texts(), tmp_path / "second", resume=saved)


def test_a_checkpoint_that_would_lose_a_step_is_not_written(texts: MakeModule, fit: Fit, tmp_path: Path) -> None:
    data = texts()
    too_early = [SaveBehind(1, tmp_path / "saved.ckpt"), StreamPosition(data)]
    with pytest.raises(AssertionError):
        fit(Recorder(), data, 6, too_early, 2)


def test_what_the_position_could_not_follow_is_refused(texts: MakeModule, train: Fit, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="11 batches are no whole steps of 2"):
        train(Recorder(), texts(num_batches=11), tmp_path)
    with pytest.raises(ValueError, match="max_epochs=2: a run is one epoch"):
        train(Recorder(), texts(), tmp_path, max_epochs=2)
