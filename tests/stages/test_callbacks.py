"""The history names every batch once, also after a resumption; progress is one line now and then."""

import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint

from llava_mini.batch import BadSample, VLMBatch
from llava_mini.stages.callbacks import Clock, History, Progress, peak_memory_bytes


class Number(LightningModule):
    """Its loss is the mean of the batch's token ids."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch: VLMBatch, batch_idx: int) -> dict[str, torch.Tensor]:
        mean = batch.input_ids.float().mean()
        return {"loss": self.weight * 0 + 7 * mean, "batch_loss": mean}  # as if it counted for more than others

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def batch(number: int, samples: int = 2) -> VLMBatch:
    ids = torch.full((samples, 1), number)
    keys = [f"{number}-{sample}" for sample in range(samples)]
    return VLMBatch(
        ids, torch.ones_like(ids), ids, torch.zeros(samples), keys=keys, kinds=[[]] * samples, position=number * samples
    )


def bad_batch(number: int, samples: int = 2) -> VLMBatch:
    """A batch of placeholders."""
    bad = [BadSample(key, "shard-000000.tar", "broken", 0) for key in batch(number, samples).keys]
    return replace(batch(number, samples), labels=torch.full((samples, 1), -100), skipped=bad)


def read(path: Path) -> list[tuple[int, float | None, list[str]]]:
    return [(line["step"], line["loss"], line["keys"]) for line in map(json.loads, path.read_text().splitlines())]


def test_the_history_has_a_line_for_every_batch(fit: Callable, tmp_path: Path):
    path = tmp_path / "run" / "history.jsonl"
    batches = [batch(1), batch(2), bad_batch(3), batch(4)]
    fit(Number(), batches, max_steps=4, callbacks=[History(path)])
    keys = [each.keys for each in batches]
    assert read(path) == [(0, 1.0, keys[0]), (1, 2.0, keys[1]), (2, None, keys[2]), (3, 4.0, keys[3])]
    assert [json.loads(line)["position"] for line in path.read_text().splitlines()] == [2, 4, 6, 8]


def test_accumulated_batches_share_a_step_and_keep_their_own_losses(fit: Callable, tmp_path: Path):
    path = tmp_path / "history.jsonl"
    batches = [batch(number) for number in range(1, 5)]
    fit(Number(), batches, accumulate_grad_batches=2, callbacks=[History(path)])
    assert [(step, loss) for step, loss, _ in read(path)] == [(0, 1.0), (0, 2.0), (1, 3.0), (1, 4.0)]


@pytest.mark.parametrize("tail", ["", '{"step": 5, "lo'])
def test_a_resumed_run_drops_what_it_will_do_again_on_any_rank(tmp_path: Path, tail: str):
    lines = [json.dumps({"step": step, "loss": 1.0, "keys": []}) + "\n" for step in range(5)]
    names = ("history.jsonl", "history.rank1.jsonl")  # as another number of ranks may have left them
    for name in names:
        (tmp_path / name).write_text("".join(lines) + tail)
    resumed: Any = SimpleNamespace(global_step=3, is_global_zero=True, strategy=SimpleNamespace(barrier=lambda: None))
    History(tmp_path / "history.jsonl").on_train_start(resumed, Number())
    assert [(tmp_path / name).read_text() for name in names] == ["".join(lines[:3])] * 2


PROGRESS = r"step (\d+) of 4: loss ([\d.]+), ([\d.]+) samples/s, ([\d.]+) [GM]iB(, 2 skipped)?"


class Bad(Callback):
    """Counts as `Quarantine` does: the third batch has two bad samples."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: VLMBatch, batch_idx: int) -> None:
        pl_module.log("data/bad", 2.0 * (batch_idx >= 2))


def progress_lines(fit: Callable, caplog: pytest.LogCaptureFixture, *others: Callback, **options: Any) -> list[str]:
    with caplog.at_level(logging.INFO, "llava_mini"):
        batches = [batch(number) for number in range(1, 5)]
        fit(Number(), batches, max_steps=4, callbacks=[*others, Progress(**options)])
    return [record.getMessage() for record in caplog.records if record.name == "llava_mini"]


def test_progress_is_a_line_now_and_then_and_at_the_end(fit: Callable, caplog: pytest.LogCaptureFixture):
    lines = progress_lines(fit, caplog, every_seconds=3600)
    assert len(lines) == 1
    found = re.fullmatch(PROGRESS, lines[0])
    assert found is not None
    assert found.group(1, 2, 5) == ("4", "4.0000", None)
    assert float(found[3]) > 0
    assert float(found[4]) > 0.05


def test_progress_says_how_many_samples_were_skipped(fit: Callable, caplog: pytest.LogCaptureFixture):
    found = [re.fullmatch(PROGRESS, line) for line in progress_lines(fit, caplog, Bad(), every_seconds=0.0)]
    assert [match and match.group(1, 2, 5) for match in found] == [
        ("1", "1.0000", None), ("2", "2.0000", None), ("3", "3.0000", ", 2 skipped"), ("4", "4.0000", ", 2 skipped"),
    ]  # fmt: skip


def test_peak_memory_is_in_bytes():
    assert 50e6 < peak_memory_bytes(torch.device("cpu")) < 100e9


def test_a_clock_continues_where_the_checkpoint_was(fit: Callable, tmp_path: Path):
    class Slow(Number):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            time.sleep(0.05)

    keep = ModelCheckpoint(dirpath=tmp_path, filename="last", every_n_train_steps=1, enable_version_counter=False)
    first = Clock()
    fit(Slow(), [batch(1)] * 4, callbacks=[first, keep], enable_checkpointing=True)
    second = Clock()
    second.on_load_checkpoint(None, None, torch.load(tmp_path / "last.ckpt", weights_only=True))
    assert 0.2 <= second.read()["seconds"] <= first.read()["seconds"] + 0.1
    used = second.used(torch.device("cpu"), devices=2)
    assert used["cpu_seconds"] > 0 and used["gpu_seconds"] == 0.0
    assert 50e6 < used["peak_memory_bytes"] < 100e9
    assert second.used(torch.device("cpu"), 2).keys() >= {"seconds", "cpu_seconds", "gpu_seconds", "peak_memory_bytes"}


def test_a_clock_adds_up_the_ranks():
    class Both:
        """Two ranks that have used the same."""

        world_size = 2
        strategy = SimpleNamespace(reduce=lambda tensor, reduce_op: 2 * tensor)

    clock, alone = Clock(), Clock()
    clock.on_train_end(Both(), Number())
    device = torch.device("cpu")
    assert clock.read()["cpu_seconds"] >= alone.read()["cpu_seconds"] > 0
    assert clock.used(device, 2)["peak_memory_bytes"] == pytest.approx(2 * peak_memory_bytes(device), rel=0.05)
