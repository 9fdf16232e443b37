"""Records training samples that cannot be used: a line for each, counts, and an error when there are too many."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from llava_mini.batch import BadSample, VLMBatch
from llava_mini.data.stream.position import samples_per_step
from llava_mini.errors import UserError
from llava_mini.files import rank_path, rank_paths, whole_lines, write_text, writing

FILE = "quarantine.jsonl"
FEWEST_SEEN = 100  # samples after which the share of bad ones is meaningful


class TooManyBadSamplesError(UserError):
    """More of the training data than allowed cannot be used; the message names the file with the reasons."""


class Quarantine(Callback):
    """Writes {"key", "shard", "reason", "position"} of every bad sample of training to a JSONL file, and counts them.

    Each rank writes its own file (`llava_mini.files.rank_path`). A resumed run, with any number of ranks, drops the
    lines of samples that it will repeat. Counts are of all ranks and of the whole run, logged at every step:

        data/bad           samples that could not be used
        data/bad_fraction  their share of the samples so far
        data/truncated     samples that were shortened to the maximum length

    Args:
        run_dir: Folder of the file.
        max_bad_fraction: Largest allowed `data/bad_fraction`; a larger one ends the run, from the hundredth sample on.
    """

    def __init__(self, run_dir: Path, max_bad_fraction: float) -> None:
        self.path, self.max_bad_fraction = run_dir / FILE, max_bad_fraction
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
