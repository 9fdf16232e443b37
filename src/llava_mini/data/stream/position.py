"""Position of a run in the order of its samples: one number, taken from the batches that were trained on.

Lightning can store the state of loaders itself, but it counts a batch that is not trained on yet, drops the state when
the length of the run is requested before training, and gives rank 0's state to every rank. A callback's state has none
of these problems, and it is loaded before the first batch is made.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from llava_mini.batch import VLMBatch
from llava_mini.data.stream.datamodule import VLMDataModule
from llava_mini.data.stream.stream import BatchLoader
from llava_mini.errors import UserError


class StreamPosition(Callback):
    """Stores the position in checkpoints, and makes a resumed run continue with the next sample.

    The position is that of the last optimizer step; batches accumulated since then are repeated. A resumed run may
    distribute the batches of a step differently, over more or fewer ranks, if a step has as many samples as before.
    Lightning's own counters, which are in batches of a rank, are then corrected.

    Args:
        datamodule: Data module that the run trains on.
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


def samples_per_step(trainer: Trainer, batch_size: int) -> int:
    """Return the number of samples of an optimizer step, of all ranks together."""
    return batch_size * trainer.world_size * trainer.accumulate_grad_batches
