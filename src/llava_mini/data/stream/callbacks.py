"""Callbacks that note a run's position in the order of its samples, and the samples that cannot be used.

The position is one number, taken from the batches that were trained on. Lightning can store the state of loaders
itself, but it counts a batch that is not trained on yet, drops the state when the length of the run is requested before
training, and gives rank 0's state to every rank. A callback's state has none of these problems, and it is loaded before
the first batch is made.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from llava_mini.batch import BadSample, VLMBatch
from llava_mini.data.stream.datamodule import VLMDataModule
from llava_mini.data.stream.stream import BatchLoader
from llava_mini.errors import UserError
from llava_mini.files import rank_path, rank_paths, whole_lines, write_text, writing

QUARANTINE = "quarantine.jsonl"
FEWEST_SEEN = 100  # samples after which the share of bad ones is meaningful


class StreamPosition(Callback):
    """Stores the position in checkpoints, and makes a resumed run continue with the next sample.

    The position is that of the last optimizer step; batches accumulated since then are repeated. A resumed run may
    distribute the batches of a step differently, over more or fewer ranks, if a step has as many samples as before.
    Lightning's own counters, which are in batches of a rank, are then corrected.
    """

    def __init__(self, datamodule: VLMDataModule) -> None:
        self.datamodule = datamodule
        self.position = self.global_batch = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise ValueError for a trainer whose steps and epochs the position cannot follow."""
        if stage != "fit":
            return
        if self.datamodule.num_batches % trainer.accumulate_grad_batches:
            raise ValueError(
                f"{self.datamodule.num_batches} batches are no whole steps of {trainer.accumulate_grad_batches}"
            )
        if trainer.max_epochs != 1:
            raise ValueError(f"max_epochs={trainer.max_epochs}: a run is one epoch of the trainer, however long")
        self.global_batch = samples_per_step(trainer, self.datamodule.batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Return how many samples all ranks have consumed, and what must be equal for the position to be valid."""
        return {"position": self.position, "plan": self.datamodule.plan, "global_batch": self.global_batch}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # A callback that saves at the end of a batch, before this one has read it, would lose the last step's samples.
        assert self.position == trainer.global_step * self.global_batch, (self.position, trainer.global_step)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the position, before Lightning restores its loops from `checkpoint`.

        Raises:
            UserError: The checkpoint is of another plan or has steps of another size, or contains no position.
        """
        state = checkpoint["callbacks"].get(self.state_key)
        if state is None:
            raise UserError(f"{trainer.ckpt_path} keeps no position in the data: it was made by another version")
        if state["plan"] != self.datamodule.plan:
            raise UserError(
                f"{trainer.ckpt_path} was made with other training data, weights or seed; a run continues with its own"
            )
        if state["global_batch"] != self.global_batch:
            raise UserError(
                f"{trainer.ckpt_path} was made with {state['global_batch']} samples a step and this run has "
                f"{self.global_batch}; batch_size x devices x accumulate_grad_batches must stay the same"
            )
        self.position = int(state["position"])
        self._put_right(checkpoint["loops"]["fit_loop"], trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the loader's start position; the loader exists by now, whoever requested it, but has made no batch."""
        loader = trainer.train_dataloader
        if not isinstance(loader, BatchLoader):
            raise ValueError(f"training takes its batches from {type(loader).__name__}, not from a BatchLoader")
        loader.start_position = self.position

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: VLMBatch, batch_idx: int
    ) -> None:
        if batch.position % self.global_batch == 0:
            self.position = batch.position

    def _put_right(self, loops: dict[str, Any], trainer: Trainer) -> None:
        """Set Lightning's counters as if the run had always had its current batches and was saved at its last step."""
        progress = loops["epoch_loop.batch_progress"]
        batches = self.position // (self.datamodule.batch_size * trainer.world_size)
        shift = batches - progress["current"]["ready"]
        for counts in (progress["total"], progress["current"]):
            for name in counts:
                counts[name] += shift
        progress["is_last_batch"] = batches >= self.datamodule.num_batches
        # As in any checkpoint of a step: the step counts as done for loggers when the checkpoint has been written.
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] = self.position // self.global_batch - 1


class TooManyBadSamplesError(UserError):
    """More of the training data than allowed cannot be used; the message names the file with the reasons."""


class Quarantine(Callback):
    """Writes {"key", "shard", "reason", "position"} of every bad sample of training to a JSONL file, and counts them.

    Each rank writes its own file (`llava_mini.files.rank_path`). A resumed run, with any number of ranks, drops the
    lines of samples that it will repeat. Counts are of all ranks and of the whole run, logged at every step:

        data/bad           samples that could not be used
        data/bad_fraction  their share of the samples so far
        data/truncated     samples that were shortened to the maximum length

    A `data/bad_fraction` above `max_bad_fraction` ends the run, from the hundredth sample on.
    """

    def __init__(self, run_dir: Path, max_bad_fraction: float) -> None:
        self.path, self.max_bad_fraction = run_dir / QUARANTINE, max_bad_fraction
        self.position = self.bad = self.truncated = 0  # of all ranks, as of the last step
        self._since = [0, 0]  # bad and truncated samples on this rank since then

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position, "bad": self.bad, "truncated": self.truncated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.position, self.bad, self.truncated = (state_dict[name] for name in ("position", "bad", "truncated"))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            with writing(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
            for path in rank_paths(self.path):
                end = self.position
                done = [line for line, value in whole_lines(path) if value.get("position", end) < end]
                write_text(path, "".join(done))
        trainer.strategy.barrier()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: VLMBatch, batch_idx: int
    ) -> None:
        if batch.skipped:
            self._write(rank_path(self.path, trainer.global_rank), batch.skipped)
        self._since[0] += len(batch.skipped)
        self._since[1] += batch.truncated
        if batch.position % samples_per_step(trainer, len(batch)) == 0:
            self._count(trainer, pl_module, batch.position)

    def _write(self, path: Path, skipped: list[BadSample]) -> None:
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(bad._asdict()) + "\n" for bad in skipped)

    def _count(self, trainer: Trainer, pl_module: LightningModule, position: int) -> None:
        """Add up the counts of all ranks at a step; no rank continues before the others have written their lines."""
        new = trainer.strategy.reduce(torch.tensor(self._since, device=pl_module.device), reduce_op="sum")
        bad, truncated = new.tolist()
        self._since = [0, 0]
        self.position, self.bad, self.truncated = position, self.bad + bad, self.truncated + truncated
        fraction = self.bad / position
        pl_module.log("data/bad", float(self.bad), prog_bar=True)
        pl_module.log_dict({"data/bad_fraction": fraction, "data/truncated": float(self.truncated)})
        if position >= FEWEST_SEEN and fraction > self.max_bad_fraction:
            raise TooManyBadSamplesError(
                f"{self.bad} of the first {position} training samples cannot be used, {fraction:.2%}; "
                f"data.max_bad_fraction={self.max_bad_fraction} is allowed; {self.path} says why for each"
            )


def samples_per_step(trainer: Trainer, batch_size: int) -> int:
    """Return the number of samples of an optimizer step, of all ranks together."""
    return batch_size * trainer.world_size * trainer.accumulate_grad_batches
