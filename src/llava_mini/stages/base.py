"""Base of the training stages: which parts train, at which learning rate, one step, and what a checkpoint contains.

A part with a learning rate trains and every other part is frozen; a concrete stage says which parts may train.
Fine-tuning may train only the adapters of a part, or nothing of it. The random numbers of a step are a function of its
place in the run, so a resumed run equals the uninterrupted run. A step's loss is the mean over the supervised tokens
of all its batches and ranks.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from llava_mini.batch import VLMBatch
from llava_mini.errors import UserError, refused
from llava_mini.files import rank_path, write_json
from llava_mini.finetune import adapted_parts, num_parameters, trains
from llava_mini.limits import Beta, Rate, Share
from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.models.configuration import PARTS
from llava_mini.models.loss import num_supervised
from llava_mini.predictions import SCORES, Predictions
from llava_mini.settings import FULL, Finetune
from llava_mini.stages.accumulation import StepMean
from llava_mini.stages.metrics import Answers, answer_scores
from llava_mini.stages.optimizers import build_optimizer
from llava_mini.stages.sharding import shard


class NonFiniteLossError(RuntimeError):
    """The loss is NaN or infinite; the message names the file with the batch's sample keys."""


class VLMStage(LightningModule, ABC):
    """One stage of training.

    Args:
        model: Model to train.
        learning_rates: Peak learning rate of every part that trains; a part that is missing or null is frozen.
        weight_decay: Weight decay of AdamW, on matrices only.
        betas: Betas of AdamW.
        warmup_ratio: Share of all steps with a rising learning rate (paper: 0.03).
        min_lr_ratio: Learning rate at the end, as a share of the peak; cosine in between.
        kinds: Kinds of questions that are scored separately.
        report_dir: Folder where the keys of a batch with a non-finite loss are written.
        finetune: Settings of fine-tuning, which `llava_mini.finetune.apply` has already applied. A part that it
            freezes does not train, whatever its learning rate.
        optimizer: Name of the optimizer: adamw, adamw_8bit, paged_adamw_8bit.
        seed: Seed of dropout, whose random numbers are a function of it and of the place in the run.
        word_marks: Marks of where words begin and end, [Vocab] uint8, for word accuracy (`stages.metrics.word_marks`);
            None: every token is a word.

    Attributes:
        validated: Scores of the last validation, of all ranks; None before the first validation.
    """

    def __init__(
        self,
        *,
        model: LlavaMiniForConditionalGeneration,
        learning_rates: dict[str, Rate | None],
        weight_decay: Rate = 0.0,
        betas: tuple[Beta, Beta] = (0.9, 0.999),
        warmup_ratio: Share = 0.03,
        min_lr_ratio: Share = 0.0,
        kinds: list[str] | None = None,
        report_dir: str | Path = ".",
        finetune: Finetune = FULL,
        optimizer: str = "adamw",
        seed: int = 0,
        word_marks: Tensor | None = None,
    ):
        super().__init__()
        self.model = model
        self.learning_rates = {part: float(rate) for part, rate in learning_rates.items() if rate is not None}
        self.weight_decay, self.betas = weight_decay, (betas[0], betas[1])
        self.warmup_ratio, self.min_lr_ratio = warmup_ratio, min_lr_ratio
        self.report_dir = Path(report_dir)
        self.finetune, self.optimizer, self.seed = finetune, optimizer, seed
        self.save_hyperparameters(  # plain values, because a checkpoint must load with weights_only
            {
                "learning_rates": self.learning_rates,
                "weight_decay": weight_decay,
                "betas": list(self.betas),
                "warmup_ratio": warmup_ratio,
                "min_lr_ratio": min_lr_ratio,
            }
        )
        self.kinds, self.answers, self.val_loss = list(kinds or []), Answers(), MeanMetric()
        self.validated: Predictions | None = None
        self.word_marks = word_marks
        self._step_mean = StepMean()
        self.strict_loading = False  # checkpoints contain trained weights only
        self.check()
        for part in PARTS:
            trained = set(map(id, self._trained(part)))
            for parameter in self._part(part).parameters():
                parameter.requires_grad = id(parameter) in trained
        self.train()  # Lightning does not change modes, and a model may be in evaluation mode

    @property
    @abstractmethod
    def trainable_parts(self) -> tuple[str, ...]:
        """Parts of the model that this stage may train."""

    def check(self) -> None:
        """Refuse what this stage cannot train; a stage that requires more of its model extends this method.

        Raises:
            UserError: for a part that the stage does not train, no part at all, or adapters on a part without a rate.
        """
        foreign = [part for part in self.learning_rates if part not in self.trainable_parts]
        if foreign or not self.learning_rates:
            key = f"learning_rates.{foreign[0]}" if foreign else "learning_rates"
            value, parts = self.learning_rates.get(key.rpartition(".")[2]), ", ".join(self.trainable_parts)
            line = f"{key}{'' if foreign else ' is empty'}: {type(self).__name__} trains any of {parts}"
            raise UserError(line, key=key, value=value, allowed=parts)
        idle = [part for part in adapted_parts(self.model, self.finetune) if part not in self.learning_rates]
        if idle:
            rates = f"learning_rates.{idle[0]}"
            raise refused(f"finetune.{idle[0]}", "lora", f"{rates} gives its adapters no rate", hint=rates)
        if not self.trained_parts:
            why = "learning_rates gives no other part a rate"
            raise refused("finetune.language_model", "frozen", why, hint="learning_rates")

    @property
    def trained_parts(self) -> list[str]:
        """Parts that this run trains, whole or by their adapters."""
        return [p for p in PARTS if p in self.learning_rates and self.finetune.of(p) != "frozen"]

    def parts_table(self) -> str:
        """Table of what trains and what is frozen, with parameter counts and learning rates, one line per part."""
        return "\n".join(
            f"{part:<15} {num_parameters(self._part(part)):>13,} parameters  {self._state(part)}" for part in PARTS
        )

    def _state(self, part: str) -> str:
        """Text on how a part's weights are trained, for people."""
        count = sum(p.numel() for p in self._trained(part))
        rate = f"lr {self.learning_rates[part]:g}" if part in self.trained_parts else ""
        packed = "; NF4" if part == "language_model" and self.finetune.quantize else ""
        if part in self.trained_parts and self.finetune.of(part) == "lora":
            lora = self.finetune.lora
            assert lora is not None
            return f"{'DoRA' if lora.dora else 'LoRA'} r={lora.rank}: {count:,} trained, {rate}{packed}"
        return f"trained, {rate}" if rate else f"frozen{packed}"

    def _trained(self, part: str) -> list[nn.Parameter]:
        """Parameters of a part that train."""
        if part not in self.trained_parts:
            return []
        named = self._part(part).named_parameters()
        return [parameter for name, parameter in named if trains(name, part, self.finetune)]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups for the optimizer: for each part that trains, the matrices, which decay, and the rest."""
        groups = []
        for part in self.trained_parts:
            parameters = self._trained(part)
            for decays in (True, False):
                chosen = [p for p in parameters if (p.dim() > 1) == decays]
                if chosen:
                    decay = self.weight_decay if decays else 0.0
                    groups.append({"params": chosen, "lr": self.learning_rates[part], "weight_decay": decay})
        return groups

    def configure_model(self) -> None:
        """Shard the weights across the ranks if the strategy is FSDP."""
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            shard(self.model, self.trainer.strategy.device_mesh["data_parallel"])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        from transformers import get_cosine_with_min_lr_schedule_with_warmup  # it also imports transformers' Trainer

        groups = self.parameter_groups()
        fused = self.device.type == "cpu" and not isinstance(self.trainer.precision_plugin, MixedPrecision)
        optimizer = build_optimizer(self.optimizer, groups, self.betas, self.device, fused)
        steps = self.trainer.max_steps
        scheduler = get_cosine_with_min_lr_schedule_with_warmup(
            optimizer, round(self.warmup_ratio * steps), steps, min_lr_rate=self.min_lr_ratio
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: VLMBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return `loss`, the batch's part of its optimizer step, and `batch_loss`, the mean over its own tokens."""
        place = np.random.SeedSequence((self.seed, batch.position, self.global_rank))
        torch.manual_seed(int(place.generate_state(1)[0]))  # for the dropout of adapters
        loss, _ = self.forward_loss(batch)
        mean = self.trainer.strategy.reduce(loss.detach().clone(), reduce_op="mean")  # over ranks; reduces in place
        if not torch.isfinite(mean):
            self._stop_on(batch, float(loss.detach()))
        self.log("train/loss", mean, prog_bar=True, batch_size=len(batch))
        return {"loss": loss * self._weight(batch, batch_idx), "batch_loss": loss.detach()}

    def validation_step(self, batch: VLMBatch, batch_idx: int) -> None:
        loss, logits = self.forward_loss(batch)
        self.val_loss.update(loss, num_supervised(batch.labels, batch.turn_ids))
        self.answers.add(batch, answer_scores(logits, batch.labels, batch.turn_ids, self.word_marks))

    def on_validation_epoch_end(self) -> None:
        """Log `val/loss`, `val/accuracy` (exact match), and each score by group and by kind of question."""
        answers, self.answers = self.answers.of_all_ranks(), Answers()
        if not len(answers):
            raise UserError("validation: none of the split's samples could be read; the log says why for each")
        answers.check(self.kinds)
        self.validated = answers.predictions()
        self.log("val/loss", self.val_loss.compute(), prog_bar=True)
        self.log("val/accuracy", self.validated.accuracy(), prog_bar=True)
        for score in SCORES:
            for group, value in self.validated.group_means(score).items():
                self.log(f"val/{score}/{group}", value)
            for kind, value in self.validated.by_kind(score).items():
                self.log(f"val/{score}_by_kind/{kind}", value)
        self.val_loss.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = {f"model.{name}" for name, p in self.model.named_parameters() if p.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}

    def train(self, mode: bool = True) -> VLMStage:
        """Set the training mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        for part in PARTS:
            if part not in self.trained_parts:
                self._part(part).eval()
        return self

    def forward_loss(self, batch: VLMBatch) -> tuple[Tensor, Tensor]:
        """Return the mean loss over the supervised tokens of a batch, and the logits."""
        outputs = self.model(**batch.model_inputs())
        return outputs.loss, outputs.logits

    def _weight(self, batch: VLMBatch, batch_idx: int) -> float:
        """Factor for the batch's mean loss, so that each token of its optimizer step counts the same."""
        own = num_supervised(batch.labels, batch.turn_ids)
        every = self.trainer.strategy.reduce(torch.tensor(own, device=self.device), reduce_op="sum")
        batches = self.trainer.accumulate_grad_batches
        if batch_idx % batches == 0:  # Lightning clears the gradients before its backward pass
            self._step_mean.begin()
        return self._step_mean.add(own, int(every), batches * self.trainer.world_size, self.trainer.optimizers[0])

    def _part(self, name: str) -> nn.Module:
        return self.model.get_submodule(name)

    def _stop_on(self, batch: VLMBatch, loss: float) -> None:
        """End the run on every rank; ranks whose own loss is not finite write the keys of their samples."""
        path = rank_path(self.report_dir / "non_finite_loss.json", self.global_rank)
        if math.isfinite(loss):
            reason = f"another rank's loss is not finite at step {self.global_step}: its keys are in {self.report_dir}"
        else:
            reason = f"loss is {loss} at step {self.global_step}: keys of the batch are in {path}"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"step": self.global_step, "loss": str(loss), "keys": batch.keys})
        self.trainer.strategy.barrier()  # no rank ends before all have written
        raise NonFiniteLossError(reason)
