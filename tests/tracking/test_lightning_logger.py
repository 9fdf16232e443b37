"""A real Trainer logs through the spool (nothing is sent: the spool's lines are what is checked)."""

import json
from pathlib import Path

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from llava_mini.tracking.lightning_logger import TrackerLogger
from llava_mini.tracking.tracker import Tracker


class OneWeight(lightning.LightningModule):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        loss = self.layer(batch[0]).square().mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self.log("val/loss", self.layer(batch[0]).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_what_stages_log_is_spooled(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    tracker = Tracker(tmp_path / "run", uri=f"sqlite:///{tmp_path}/file/no.db")
    logger = TrackerLogger(tracker)
    trainer = lightning.Trainer(
        max_steps=4, logger=logger, log_every_n_steps=2, accelerator="cpu", enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    batches = DataLoader(TensorDataset(torch.ones(8, 1)), batch_size=2)
    trainer.fit(OneWeight(rate=0.5), batches, batches)
    tracker.finish(wait=5)

    lines = [json.loads(line) for line in (tmp_path / "run" / "spool.jsonl").read_text().splitlines()]
    assert (logger.name, logger.version) == ("run", None)
    assert [line["values"] for line in lines if line["kind"] == "params"] == [{"rate": 0.5}]
    metrics = [line for line in lines if line["kind"] == "metrics"]
    steps = [(line["step"], *line["values"]) for line in metrics]
    assert steps == [(2, "train/loss"), (4, "train/loss"), (4, "val/loss")]  # steps done
