"""Callbacks that report on a run while it trains: a line per batch for programs, a line now and then for people.

Nothing here changes what is trained. A stage's training step returns `batch_loss`, the batch's own loss, besides
`loss`, which is the batch's part of its optimizer step.
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
from llava_mini.files import rank_path, rank_paths, whole_lines, write_text, writing
from llava_mini.stages.base import VLMStage
from llava_mini.units import GIB, size_text

log = logging.getLogger("llava_mini")

VALIDATIONS = "validation"  # subfolder of a run's folder


class History(Callback):
    """Appends {"step", "position", "loss", "keys"} to a JSONL file after every batch.

    Each rank writes a separate file (`llava_mini.files.rank_path`); `path` is rank 0's. A resumed run, with any number
    of ranks, drops the lines of batches that it will repeat. The loss of a batch without a usable sample is null.
    """

    def __init__(self, path: Path):
        self.path = path

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            with writing(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.touch()
            for path in rank_paths(self.path):
                _drop(path, trainer.global_step)
        trainer.strategy.barrier()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: VLMBatch, batch_idx: int
    ) -> None:
        line = {
            "step": trainer.global_step - int(not trainer.fit_loop.epoch_loop._should_accumulate()),
            "position": batch.position,
            "loss": float(outputs["batch_loss"]) if batch.num_supervised() else None,
            "keys": batch.keys,
        }
        path = rank_path(self.path, trainer.global_rank)
        with writing(path), path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Wait until all ranks have written the lines of the batches that the checkpoint counts as done."""
        trainer.strategy.barrier()


def _drop(path: Path, step: int) -> None:
    """Delete the lines from `step` on, and a line that was being written when the run was killed."""
    write_text(path, "".join(line for line, value in whole_lines(path) if value.get("step", step) < step))


class Validations(Callback):
    """Saves the scores of every validation: `validation/step-000200.npz` in the run's folder, as `Predictions`.

    A run's convergence is computed from them (`llava_mini.evaluate.convergence`).
    """

    def __init__(self, run_dir: Path):
        self.folder = run_dir / VALIDATIONS

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and isinstance(pl_module, VLMStage) and pl_module.validated is not None:
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            pl_module.validated.save(self.folder / f"step-{trainer.global_step:06d}.npz")


class Clock(Callback):
    """Measures the time and memory of a run, over all its ranks and attempts.

    What was lost since the last checkpoint when a run was killed is not counted. CPU seconds are those of the ranks and
    their children since this object was made. Memory is the sum of the ranks' peaks.
    """

    def __init__(self) -> None:
        self.before = {"seconds": 0.0, "cpu_seconds": 0.0}
        self.start, self.cpu_start = time.monotonic(), _cpu_seconds()
        self.others = {"cpu_seconds": 0.0, "memory": 0.0}  # at the last exchange between ranks

    def read(self) -> dict[str, float]:
        """Return wall and CPU seconds so far."""
        own = _cpu_seconds() - self.cpu_start
        return {
            "seconds": self.before["seconds"] + time.monotonic() - self.start,
            "cpu_seconds": self.before["cpu_seconds"] + own + self.others["cpu_seconds"],
        }

    def used(self, device: torch.device, devices: int) -> dict[str, float]:
        """Return wall and CPU seconds, the seconds for which GPUs were occupied, and the peak memory in bytes."""
        seconds = self.read()
        return {
            **seconds,
            "gpu_seconds": seconds["seconds"] * devices if device.type == "cuda" else 0.0,
            "peak_memory_bytes": peak_memory_bytes(device) + int(self.others["memory"]),
        }

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._hear(trainer, pl_module.device)
        checkpoint["clock"] = self.read()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.before = dict(checkpoint["clock"])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hear(trainer, pl_module.device)

    def _hear(self, trainer: Trainer, device: torch.device) -> None:
        """Exchange times and memory with the other ranks; all ranks call this at the same time."""
        if trainer.world_size > 1:
            used = {"cpu_seconds": _cpu_seconds() - self.cpu_start, "memory": float(peak_memory_bytes(device))}
            own = torch.tensor(list(used.values()), dtype=torch.float64, device=device)
            others = trainer.strategy.reduce(own.clone(), reduce_op="sum") - own
            self.others = dict(zip(used, others.tolist(), strict=True))


def _cpu_seconds() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


class Progress(Callback):
    """Reports loss, samples/s and memory: in the progress bar, and as a line every few seconds without a terminal."""

    def __init__(self, every_seconds: float = 15.0):
        self.every_seconds = every_seconds
        self.last, self.samples = 0.0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last, self.samples = time.monotonic(), 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.samples += len(batch) if isinstance(batch, VLMBatch) else len(batch[0])  # stage 0: (images, targets)
        now = time.monotonic()
        if now - self.last < self.every_seconds and trainer.global_step < trainer.max_steps:
            return
        rate = self.samples * trainer.world_size / max(now - self.last, 1e-9)
        pl_module.log("samples_per_s", rate, prog_bar=True)
        pl_module.log("memory_gib", peak_memory_bytes(pl_module.device) / GIB, prog_bar=True)
        if not sys.stderr.isatty():
            bad = int(trainer.callback_metrics.get("data/bad", 0))  # of all ranks, as `Quarantine` counts them
            log.info(
                "step %d of %d: loss %.4f, %.1f samples/s, %s%s",
                trainer.global_step, trainer.max_steps, float(outputs["batch_loss"]), rate,
                size_text(peak_memory_bytes(pl_module.device)), f", {bad} skipped" if bad else "",
            )  # fmt: skip
        self.last, self.samples = now, 0


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory of this process on `device`: of the allocator on a GPU, resident memory on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
