"""What a run is planned to take before it begins, and what it has taken, so that the plan's error is always known."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch

from llava_mini.commands.plan import training_plan
from llava_mini.data.collate import collate
from llava_mini.data.datamodule import Mix, VLMDataModule
from llava_mini.data.errors import SampleError
from llava_mini.errors import UserError
from llava_mini.plan.report import GIB
from llava_mini.plan.sample import Sample
from llava_mini.stages.callbacks import peak_memory_bytes

log = logging.getLogger("llava_mini")

_LOOKED_AT = 32  # samples of each set, whose longest is what the plan assumes


class Memory:
    """The planned and the measured peak of a run on one device.

    On a CPU what is measured is the growth of the process, with all that is not a tensor.
    """

    def __init__(self) -> None:
        self.before = peak_memory_bytes(torch.device("cpu"))
        self.planned: int | None = None

    def plan(self, config: dict[str, Any], datamodule: VLMDataModule, image_token_id: int) -> None:
        """Plan the run and tell the figure; a run is never stopped by a mistake in its planning."""
        try:
            sample = longest_sample(config, datamodule.splits["train"], image_token_id)
            with torch.random.fork_rng(devices=[]):  # what a run draws does not depend on its plan
                report = training_plan(config, sample, search=False)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, UserError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            log.warning("plan: this run's memory could not be planned (%s)", reason)
            return
        self.planned = report.peak.bytes
        card = "" if report.fits is None else f", the card {'has that' if report.fits else 'HAS LESS: llava-mini plan'}"
        log.info("plan: a step takes %.2f GiB%s", self.planned / GIB, card)

    def measured(self, device: torch.device) -> dict[str, int | None]:
        """Both peaks, for the run's result; to be asked when training ends."""
        peak = peak_memory_bytes(device) - (0 if device.type == "cuda" else self.before)
        if self.planned is not None:
            log.info("plan: %.2f GiB, measured: %.2f GiB", self.planned / GIB, peak / GIB)
        return {"planned_peak_bytes": self.planned, "measured_peak_bytes": peak}


def longest_sample(config: dict[str, Any], mix: Mix, image_token_id: int) -> Sample:
    """As long, with as many frames, as the longest of some samples of each set.

    Raises:
        UserError: none of them can be used.
    """
    samples = []
    for reader in mix.readers:
        count = len(reader.shards.index["frames"])
        for index in np.linspace(0, count - 1, min(count, _LOOKED_AT)).astype(int):
            try:
                samples.append((reader(int(index)), reader.tokenize.pad_token_id))
            except SampleError:
                continue
    if not samples:
        raise UserError("none of the first samples could be read")
    batch = collate([sample for sample, _ in samples], samples[0][1])
    seen = batch.pixel_values if batch.image_features is None else batch.image_features
    return Sample(
        text_tokens=int(((batch.input_ids != image_token_id) & batch.attention_mask.bool()).sum(1).max()),
        frames=int(batch.num_frames.max()),
        views=1 if seen is None else seen.shape[1],
        stored_features=bool(config["data"]["features"]),
        independent_turns=batch.turn_ids is not None,
    )
