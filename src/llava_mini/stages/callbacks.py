"""What a run tells while it trains: a line a step for machines, a line now and then for people.

Nothing here changes what is trained.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from llava_mini.batch import VLMBatch
from llava_mini.files import write_text

log = logging.getLogger("llava_mini")


class History(Callback):
    """Appends {"step", "loss", "keys", "skipped"} to a JSONL file after every batch.

    A resumed run drops the lines of what it will do again.

    The loss of a batch without a usable sample is null.

    Args:
        path: The file.
    """

    def __init__(self, path: Path):
        self.path = path

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        done = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < trainer.global_step]
        write_text(self.path, "".join(done))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: VLMBatch, batch_idx: int
    ) -> None:
        step = trainer.global_step - int(not trainer.fit_loop.epoch_loop._should_accumulate())
        loss = batch_loss(trainer, outputs)
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "loss": loss, "keys": batch.keys, "skipped": batch.skipped}) + "\n")


class Clock(Callback):
    """Wall and CPU seconds of a run, over all its attempts; what a kill undid since the last checkpoint is not counted.

    CPU seconds are those of this process and its children since it was made.
    """

    def __init__(self) -> None:
        self.before = {"seconds": 0.0, "cpu_seconds": 0.0}
        self.start, self.cpu_start = time.monotonic(), _cpu_seconds()

    def read(self) -> dict[str, float]:
        """Seconds so far."""
        return {
            "seconds": self.before["seconds"] + time.monotonic() - self.start,
            "cpu_seconds": self.before["cpu_seconds"] + _cpu_seconds() - self.cpu_start,
        }

    def state_dict(self) -> dict[str, float]:
        return self.read()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before = dict(state_dict)


def _cpu_seconds() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


class Progress(Callback):
    """Loss, samples/s and memory: in the progress bar, and as a line every few seconds where output is no terminal.

    Args:
        every_seconds: Time between lines.
    """

    def __init__(self, every_seconds: float = 15.0):
        self.every_seconds = every_seconds
        self.last, self.samples, self.skipped = 0.0, 0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last, self.samples = time.monotonic(), 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        is_vlm = isinstance(batch, VLMBatch)  # stage 0 trains on (images, targets)
        self.samples += len(batch) if is_vlm else len(batch[0])
        self.skipped += len(batch.skipped) if is_vlm else 0
        now = time.monotonic()
        if now - self.last < self.every_seconds and trainer.global_step < trainer.max_steps:
            return
        rate = self.samples / max(now - self.last, 1e-9)
        pl_module.log("samples_per_s", rate, prog_bar=True)
        pl_module.log("memory_gb", peak_memory_bytes(pl_module.device) / 1e9, prog_bar=True)
        if not sys.stderr.isatty():
            loss = batch_loss(trainer, outputs)
            skipped = f", {self.skipped} skipped" if self.skipped else ""
            log.info(
                "step %d of %d: loss %s, %.1f samples/s, %.2f GB%s",
                trainer.global_step, trainer.max_steps, "none" if loss is None else f"{loss:.4f}", rate,
                peak_memory_bytes(pl_module.device) / 1e9, skipped,
            )  # fmt: skip
        self.last, self.samples = now, 0


def batch_loss(trainer: Trainer, outputs: Any) -> float | None:
    """The batch's own loss, not its share of an accumulated step; None where it had no usable sample."""
    return float(outputs["loss"]) * trainer.accumulate_grad_batches if outputs else None


def peak_memory_bytes(device: torch.device) -> int:
    """Peak of this process on `device`: the allocator's on a GPU, resident memory on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
