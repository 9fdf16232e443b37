"""Find config changes that save memory, one after another, until the config fits.

Each change is planned together with those before it.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass

from llava_mini.errors import UserError
from llava_mini.plan.memory_options import Change, finetunings, memory_changes, shares, smaller_batch
from llava_mini.plan.peaks import Peaks
from llava_mini.plan.report import MemoryChange
from llava_mini.plan.search import largest_batch


@dataclass
class Advice:
    """Memory-saving changes that are applied one after another.

    Args:
        peaks: Peaks of the config.
        limit: Available memory in bytes; None: unknown, so every change that saves memory is taken.
        finetune: Whether changes that train other weights are taken too.

    Attributes:
        saved: Changes that were taken, as text with their cost and the new peak.
        changes: Changes that were taken, as config changes.
        peaks: Peaks of the config with all taken changes.
        largest: Largest batch that fits with all taken changes; None if none was taken or the limit is unknown.
    """

    peaks: Peaks
    limit: int | None
    finetune: bool = True

    def __post_init__(self) -> None:
        self.saved: list[MemoryChange] = []
        self.changes: list[Change] = []
        self.largest: int | None = None
        self._peak = self.peaks.bytes(self._size)
        self._shares = shares(self.peaks.planner.stage)
        self._find()
        if self.saved and self.limit is not None:
            self.largest = self._largest(self.peaks)

    @property
    def _size(self) -> int:
        return self.peaks.config.data.batch_size

    @property
    def _fits(self) -> bool:
        return self.limit is not None and self._peak <= self.limit

    def _find(self) -> None:
        """Take memory options, then a smaller batch. If even one sample is too large, change the fine-tuning first."""
        left = self._take_all(memory_changes(self.peaks.config))
        if self.saved and not self._fits:
            self._take_all(left)  # these saved nothing while other memory determined the peak
        ways = finetunings(self.peaks.config) if self.finetune else []
        if self.limit is None:
            self._take_smaller_batch()
            self._take_all(ways)
            return
        while not self._fits and not self._take_smaller_batch() and ways:
            self._take(ways.pop(0))

    def _take_all(self, changes: list[Change]) -> list[Change]:
        """Take changes that save memory until the config fits, and return those that save nothing."""
        left = []
        for change in changes:
            if self._fits:
                break
            if not self._take(change):
                left.append(change)
        return left

    def _take_smaller_batch(self) -> bool:
        fits = self._size // 2 if self.limit is None else self._largest(self._accumulating())
        change = smaller_batch(self.peaks.config, fits)
        return change is not None and self._take(change)

    def _accumulating(self) -> Peaks:
        """Return the peaks with gradients that stay between micro-batches, as any split of this batch needs."""
        config = self.peaks.config
        if self._size == 1 or config.accumulate > 1:
            return self.peaks
        return self.peaks.of(config.changed({"trainer": {"accumulate_grad_batches": 2, "global_batch": None}}))

    def _take(self, change: Change) -> bool:
        """Take a change if it saves memory, and return whether it does."""
        gc.collect()
        try:
            config = change.of(self.peaks.config)
        except UserError:
            return False  # it needs the adapters of a change that saved nothing and was not taken
        peaks = self.peaks.of(config)
        peak = peaks.bytes(peaks.config.data.batch_size)
        if peak >= self._peak:
            return False
        self.changes.append(change)
        self.saved.append(MemoryChange(change.text, change.cost.format(**self._shares), peak))
        self.peaks, self._peak = peaks, peak
        return True

    def _largest(self, peaks: Peaks) -> int:
        assert self.limit is not None
        return largest_batch(peaks.bytes, self.limit, self._size, peaks.largest_planned)
