"""The history names every batch once, also after a resumption; progress is one line now and then."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule

from llava_mini.batch import VLMBatch
from llava_mini.data.collate import collate
from llava_mini.stages.callbacks import History, Progress, peak_memory_bytes


class Number(LightningModule):
    """Its loss is the batch's first token id; a batch of nothing has none."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch: VLMBatch, batch_idx: int) -> torch.Tensor | None:
        return self.weight * 0 + batch.input_ids.float().mean() if len(batch) else None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def batch(number: int, samples: int = 2) -> VLMBatch:
    ids = torch.full((samples, 1), number)
    keys = [f"{number}-{sample}" for sample in range(samples)]
    return VLMBatch(ids, torch.ones_like(ids), ids, torch.zeros(samples), keys=keys, kinds=[[]] * samples)


def read(path: Path) -> list[tuple[int, float | None, list[str]]]:
    return [(line["step"], line["loss"], line["keys"]) for line in map(json.loads, path.read_text().splitlines())]


def test_the_history_has_a_line_for_every_batch(fit: Callable, tmp_path: Path):
    path = tmp_path / "run" / "history.jsonl"
    batches = [batch(1), batch(2), collate([], 0, ["3-0: broken"]), batch(4)]
    fit(Number(), batches, max_steps=4, callbacks=[History(path)])
    keys = [each.keys for each in batches]
    assert read(path) == [(0, 1.0, keys[0]), (1, 2.0, keys[1]), (2, None, []), (3, 4.0, keys[3])]


def test_accumulated_batches_share_a_step_and_keep_their_own_losses(fit: Callable, tmp_path: Path):
    path = tmp_path / "history.jsonl"
    batches = [batch(number) for number in range(1, 5)]
    fit(Number(), batches, accumulate_grad_batches=2, callbacks=[History(path)])
    assert [(step, loss) for step, loss, _ in read(path)] == [(0, 1.0), (0, 2.0), (1, 3.0), (1, 4.0)]


@pytest.mark.parametrize("tail", ["", '{"step": 5, "lo'])
def test_a_resumed_run_drops_what_it_will_do_again(tmp_path: Path, tail: str):
    class Resumed:
        global_step = 3

    path = tmp_path / "history.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.0, "keys": []}) + "\n" for step in range(5)]
    path.write_text("".join(lines) + tail)
    History(path).on_train_start(Resumed(), Number())
    assert path.read_text() == "".join(lines[:3])


PROGRESS = r"step (\d+) of 4: loss ([\d.]+|none), ([\d.]+) samples/s, (\d+\.\d\d) GB(, 2 skipped)?"


def progress_lines(fit: Callable, caplog: pytest.LogCaptureFixture, batches: list[Any], **options: Any) -> list[str]:
    with caplog.at_level(logging.INFO, "llava_mini"):
        fit(Number(), batches, max_steps=4, callbacks=[Progress(**options)])
    return [record.getMessage() for record in caplog.records if record.name == "llava_mini"]


def test_progress_is_a_line_now_and_then_and_at_the_end(fit: Callable, caplog: pytest.LogCaptureFixture):
    lines = progress_lines(fit, caplog, [batch(number) for number in range(1, 5)], every_seconds=3600)
    assert len(lines) == 1
    found = re.fullmatch(PROGRESS, lines[0])
    assert found is not None
    assert found.group(1, 2, 5) == ("4", "4.0000", None)
    assert float(found[3]) > 0
    assert 0.05 < float(found[4]) < 100


def test_progress_counts_what_was_skipped(fit: Callable, caplog: pytest.LogCaptureFixture):
    batches = [batch(1), batch(2), collate([], 0, ["a: broken", "b: broken"]), batch(4)]
    found = [re.fullmatch(PROGRESS, line) for line in progress_lines(fit, caplog, batches, every_seconds=0.0)]
    assert [match and match.group(1, 2, 5) for match in found] == [
        ("1", "1.0000", None), ("2", "2.0000", None), ("3", "none", ", 2 skipped"), ("4", "4.0000", ", 2 skipped"),
    ]  # fmt: skip


def test_peak_memory_is_in_bytes():
    assert 50e6 < peak_memory_bytes(torch.device("cpu")) < 100e9
