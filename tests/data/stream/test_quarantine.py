"""Every bad sample of training has one line, whatever was killed and resumed; too many of them end the run."""

import json
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
from llava_mini.data.stream.callbacks import Quarantine, StreamPosition, TooManyBadSamplesError
from llava_mini.data.stream.datamodule import VLMDataModule
from llava_mini.data.text.labels import ConversationTokenizer
from llava_mini.errors import UserError

MakeModule = Callable[..., VLMDataModule]
Fit = Callable[..., Trainer]
Train = Callable[..., Path]
BAD = (2, 5)  # of nine samples

pytestmark = [
    pytest.mark.filterwarnings("ignore:The .*dataloader.* does not have many workers"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


class Idle(LightningModule):
    """Learns nothing; stops the run when it is told to."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.weight, self.stop_at = torch.nn.Parameter(torch.zeros(())), stop_at

    def training_step(self, batch: VLMBatch, index: int) -> Tensor:
        if index == self.stop_at:
            raise KeyError("stopped")
        return self.weight * 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Metrics(DummyLogger):
    """Keeps (bad, bad_fraction, truncated) by step."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, list[float]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.seen[step] = [metrics[f"data/{name}"] for name in ("bad", "bad_fraction", "truncated")]


@pytest.fixture
def train(fit: Fit, texts: MakeModule, tmp_path: Path) -> Train:
    """train(stop_at=None, *callbacks, steps=6, accumulate=2, limit=0.5, resume=step, ...): Quarantine's file."""

    def run(
        stop_at: int | None = None, *callbacks: Callback, steps: int = 6, accumulate: int = 2, limit: float = 0.5,
        workers: int = 0, batch_size: int = 2, name: str = "run", resume: int | None = None, ranks: int = 1,
        **options: Any,
    ) -> Path:  # fmt: skip
        folder = tmp_path / name
        data = texts(batch_size, steps * accumulate, bad=BAD, num_workers=workers)
        callbacks += (StreamPosition(data), Quarantine(folder, limit))
        callbacks += (ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1),)
        fit(
            Idle(stop_at), data, steps, callbacks, accumulate, folder / f"step={resume}.ckpt" if resume else None,
            enable_checkpointing=True, limit_val_batches=0, devices=ranks,
            strategy="ddp_fork" if ranks > 1 else "auto", **options,
        )  # fmt: skip
        return folder / "quarantine.jsonl"

    return run


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def planned(texts: MakeModule, positions: int) -> list[tuple[str, int]]:
    """Keys and positions of the bad samples up to a position."""
    order = texts(bad=BAD).train_dataloader().stream.order
    return [(f"{order(i)[1]:02d}", i) for i in range(positions) if order(i)[1] in BAD]


def test_every_bad_sample_has_a_line_with_its_place_and_reason(train: Train, texts: MakeModule) -> None:
    found = lines(train(workers=1))
    assert [(line["key"], line["position"]) for line in found] == planned(texts, 24)
    assert len(found) >= 4  # nearly three epochs
    for line in found:
        assert line["shard"].endswith(f"train-[2, 5]/shard-00000{int(line['key']) // 4}.tar")
        assert line["reason"].startswith("not JSON")
        assert set(line) == {"key", "shard", "reason", "position"}


def test_counts_are_logged_at_every_step_and_are_in_the_progress_bar(train: Train, texts: MakeModule) -> None:
    class Shown(Callback):
        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            self.metrics = dict(trainer.progress_bar_metrics)

    metrics, shown = Metrics(), Shown()
    train(None, shown, logger=metrics)
    bad = [len(planned(texts, 4 * step)) for step in range(1, 7)]
    assert sorted(metrics.seen) == [0, 1, 2, 3, 4, 5]
    for step, count in enumerate(bad):
        assert metrics.seen[step] == pytest.approx([count, count / (4 * (step + 1)), 0])
    assert shown.metrics["data/bad"] == bad[-1]


@pytest.mark.parametrize("stop_at", [1, 3, 4, 7, 9])  # at 9, the first sample to be done again is a bad one
def test_a_resumed_run_has_each_line_once_and_counts_on(train: Train, stop_at: int) -> None:
    metrics, resumed = Metrics(), Metrics()
    expected = train(name="whole", logger=metrics).read_text()
    with pytest.raises(KeyError):
        train(stop_at)
    steps = stop_at // 2
    path = train(resume=steps or None, logger=resumed)
    assert path.read_text() == expected
    assert resumed.seen == {step: values for step, values in metrics.seen.items() if step >= steps}


@pytest.mark.parametrize("tail", ['{"key": "02", "sha', '{"key": "02", "position": 9}\n{"key": "02"'])
def test_a_line_that_a_kill_cut_off_is_dropped(train: Train, tmp_path: Path, tail: str) -> None:
    expected = train(name="whole").read_text()
    with pytest.raises(KeyError):
        train(4)
    with (tmp_path / "run" / "quarantine.jsonl").open("a") as file:
        file.write(tail)
    assert train(resume=2).read_text() == expected


def test_shortened_samples_are_counted(train: Train, texts: MakeModule, tokenize: ConversationTokenizer) -> None:
    reader = texts(bad=BAD).splits["train"].readers[0]
    tokenize.max_length = len(reader(8).tokens) - 1  # the longest loses its second turn
    order = texts(bad=BAD).train_dataloader().stream.order
    metrics = Metrics()
    train(logger=metrics)
    assert metrics.seen[5][2] == sum(order(i)[1] == 8 for i in range(24)) >= 2


def test_ranks_write_files_of_their_own_and_count_together(train: Train, texts: MakeModule, tmp_path: Path) -> None:
    def written() -> list[tuple[str, int]]:
        return sorted(((line["key"], line["position"]) for path in paths for line in lines(path)), key=lambda x: x[1])

    paths = [train(batch_size=1, ranks=2), tmp_path / "run" / "quarantine.rank1.jsonl"]
    assert all(lines(path) for path in paths)
    assert written() == planned(texts, 24)
    last = torch.load(tmp_path / "run" / "step=6.ckpt", weights_only=True)["callbacks"]["Quarantine"]
    assert last == {"position": 24, "bad": len(planned(texts, 24)), "truncated": 0}
    train(resume=3)  # with fewer ranks, which drop what all of them have to do again
    assert written() == planned(texts, 24)


def test_too_many_bad_samples_end_the_run(train: Train, tmp_path: Path, texts: MakeModule) -> None:
    bad = len(planned(texts, 100))
    message = rf"{bad} of the first 100 training samples cannot be used, {bad}\.00%; data\.max_bad_fraction=0\.1 is "
    with pytest.raises(TooManyBadSamplesError, match=message) as caught:
        train(steps=40, limit=0.1)
    assert isinstance(caught.value, UserError)
    assert f"{tmp_path / 'run' / 'quarantine.jsonl'} says why" in str(caught.value)
    # nothing is lost: with another limit it goes on from the step before
    train(steps=40, resume=24)
    assert len(lines(tmp_path / "run" / "quarantine.jsonl")) == len(planned(texts, 160))


def test_a_share_that_is_allowed_does_not(train: Train) -> None:
    train(steps=40, limit=0.3)  # 2 of 9 are bad
