"""Stage 0, toy world only: training of a vision tower, in place of CLIP's pre-training.

A linear head predicts from every patch's feature what is there: kind, color, digit, center. After this stage the tower
stays frozen, as CLIP does in LLaVA-Mini.

Shapes: B images, N patches, D width of the tower.
"""

from __future__ import annotations

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from transformers import PreTrainedModel

from llava_mini.batch import IGNORE
from llava_mini.limits import Rate, Share
from llava_mini.models.vision_tower import encode_views, patches_per_side


class VisionPretrainingStage(LightningModule):
    """Stage 0, which supervises every patch of a vision tower.

    Args:
        vision_tower: Vision tower, all of which trains.
        feature_layer: Hidden state that LLaVA-Mini will read (`vision_feature_layer`), which is the one supervised.
        target_classes: Name and number of classes of every target. In `digit`, class 0 (no digit) is not scored.
        learning_rate: Peak learning rate of AdamW; cosine to zero.
        weight_decay: Weight decay of AdamW.
        warmup_ratio: Share of all steps with a rising learning rate.
    """

    def __init__(
        self,
        *,
        vision_tower: PreTrainedModel,
        feature_layer: int,
        target_classes: dict[str, int],
        learning_rate: Rate,
        weight_decay: Rate = 0.05,
        warmup_ratio: Share = 0.04,
    ):
        super().__init__()
        self.vision_tower, self.feature_layer = vision_tower, feature_layer
        self.learning_rate, self.weight_decay, self.warmup_ratio = learning_rate, weight_decay, warmup_ratio
        width = vision_tower.config.hidden_size
        self.num_patches = patches_per_side(vision_tower.config) ** 2
        self.heads = nn.ModuleDict({name: nn.Linear(width, count) for name, count in target_classes.items()})
        self.accuracy = MetricCollection(
            {
                name: MulticlassAccuracy(count, average="micro", ignore_index=IGNORE)
                for name, count in target_classes.items()
            },
            prefix="val/",
        )

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Return the logits of every target for every patch: [B, 3, H, W] -> {name: [B, classes, N]}."""
        features = encode_views(self.vision_tower, pixel_values, self.feature_layer, self.num_patches)
        return {name: head(features).transpose(1, 2) for name, head in self.heads.items()}

    def training_step(self, batch: tuple[Tensor, dict[str, Tensor]], batch_idx: int) -> dict[str, Tensor]:
        loss, _ = self._shared_step(batch, "train")
        return {"loss": loss, "batch_loss": loss.detach()}

    def validation_step(self, batch: tuple[Tensor, dict[str, Tensor]], batch_idx: int) -> None:
        """Score objects only: correct predictions of background show nothing."""
        _, logits = self._shared_step(batch, "val")
        for name, metric in self.accuracy.items(keep_base=True):
            targets = batch[1][name]
            metric.update(
                logits[name], targets.masked_fill(targets == 0, IGNORE) if name in _ZERO_IS_NOTHING else targets
            )
        self.log_dict(self.accuracy)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        from transformers import get_cosine_schedule_with_warmup  # it also imports transformers' Trainer

        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        steps = self.trainer.max_steps
        scheduler = get_cosine_schedule_with_warmup(optimizer, round(self.warmup_ratio * steps), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _shared_step(self, batch: tuple[Tensor, dict[str, Tensor]], split: str) -> tuple[Tensor, dict[str, Tensor]]:
        pixel_values, targets = batch
        logits = self(pixel_values)
        losses = [nn.functional.cross_entropy(logits[n], targets[n], ignore_index=IGNORE) for n in logits]
        loss = torch.stack(losses).sum()
        self.log(f"{split}/loss", loss.detach(), prog_bar=True)
        return loss, logits


_ZERO_IS_NOTHING = ("kind", "color", "digit")
