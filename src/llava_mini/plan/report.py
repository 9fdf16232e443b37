"""Report of a plan: one table for people, one object for programs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llava_mini.config import Config
from llava_mini.plan.ledger import CASTS, FROZEN, GRADIENTS, LOGITS, OPTIMIZER, QUANTIZED, TRAINED, WORKSPACE
from llava_mini.plan.planner import Peak
from llava_mini.plan.sample import Sample
from llava_mini.units import MIB, size_text

# Memory that the allocator counts but that no operator shows: cuBLAS' own workspace (8 MiB, on Hopper 32).
CUBLAS = 32 * MIB

NAME_A_CARD = "choose hardware=..., or give its memory as hardware.memory_gib=..."

_NAMES = {
    FROZEN: "frozen weights",
    TRAINED: "trained weights",
    QUANTIZED: "quantized weights (NF4)",
    GRADIENTS: "gradients",
    OPTIMIZER: "optimizer state",
    "activations": "activations",
    LOGITS: "logits",
    CASTS: "half copies of weights (autocast)",
    WORKSPACE: "workspace",
}


@dataclass(frozen=True)
class MemoryChange:
    """Change that saves memory."""

    change: str  # as typed on the command line
    cost: str  # in time
    peak_bytes: int  # with this change and all before it


def _lines(changes: list[MemoryChange]) -> list[str]:
    width = max(len(change.change) for change in changes)
    return [f"  {s.change:<{width}} {size_text(s.peak_bytes):>12}  time: {s.cost}" for s in changes]


@dataclass
class Report:
    """Result of a plan."""

    config: Config  # that is planned, with what `memory.fit` has chosen
    peak: Peak  # of the config's own batch
    batch_size: int  # of the config
    sample: Sample  # as assumed
    memory_bytes: int | None  # of the card; None when no card is planned for
    outside_bytes: int  # of the card, not counted by torch's allocator; part of neither peak nor breakdown
    largest_batch: int | None = None  # that fits; None without a card
    chosen: list[MemoryChange] = field(default_factory=list)  # made by `memory.fit`, cheapest first
    changes: list[MemoryChange] = field(default_factory=list)  # to make, cheapest first, until it fits
    batch_with_changes: int | None = None  # largest with all changes; None without any
    notes: list[str] = field(default_factory=list)  # on what the figures leave out
    seconds: float = 0.0  # that planning took

    @property
    def fits(self) -> bool | None:
        """Whether the config's own batch fits the card; None without a card."""
        return None if self.memory_bytes is None else self.peak.bytes + self.outside_bytes <= self.memory_bytes

    def as_dict(self) -> dict[str, Any]:
        """Return the object for `--json`."""
        return {
            "peak_bytes": self.peak.bytes,
            "fits": self.fits,
            "largest_batch": self.largest_batch,
            "seconds": round(self.seconds, 1),
            "breakdown": self.peak.breakdown,
            "batch_size": self.batch_size,
            "memory_bytes": self.memory_bytes,
            "outside_bytes": self.outside_bytes,
            "host_bytes": self.peak.host_bytes,
            "sample": vars(self.sample),
            "chosen": [vars(change) for change in self.chosen],
            "changes": [vars(change) for change in self.changes],
            "batch_with_changes": self.batch_with_changes,
            "notes": self.notes,
        }

    def __str__(self) -> str:
        return "\n".join(
            [*self._assumed(), *self._table(), *self._verdict(), *self.notes, f"planned in {self.seconds:.0f} s"]
        )

    def _assumed(self) -> list[str]:
        sample = self.sample
        frames = f"{sample.frames} frame{'s' * (sample.frames != 1)} of {sample.views} view{'s' * (sample.views != 1)}"
        read = ", features read from disk" if sample.stored_features and sample.frames else ""
        text = f"{sample.text_tokens} text tokens ({sample.supervised_tokens} of them supervised)"
        return [f"batch of {self.batch_size}; each sample {text}, {frames}{read}", ""]

    def _table(self) -> list[str]:
        rows = [(_NAMES[part], size) for part, size in self.peak.breakdown.items() if size]
        lines = [f"{name:<34} {size_text(size):>12}" for name, size in [*rows, ("peak", self.peak.bytes)]]
        if self.memory_bytes is not None:
            if self.outside_bytes:
                lines.append(f"{'CUDA context, not counted above':<34} {size_text(self.outside_bytes):>12}")
            lines.append(f"{'the card':<34} {size_text(self.memory_bytes):>12}")
        if self.peak.host_bytes:
            lines.append(f"{'host memory in addition':<34} {size_text(self.peak.host_bytes):>12}")
        return [*lines, ""]

    def _verdict(self) -> list[str]:
        if self.memory_bytes is None:
            return ["no card is named, so whether it fits is not known: " + NAME_A_CARD]
        largest = "" if self.largest_batch is None else f"; the largest batch that fits is {self.largest_batch}"
        lines = [f"{'fits' if self.fits else 'does not fit'}{largest}"]
        if self.chosen:
            lines.append("with what memory=auto has chosen, cheapest in time first:")
            lines += _lines(self.chosen)
        if self.changes:
            lines.append("to change, each with those above it, cheapest in time first, what trains other weights last:")
            lines += _lines(self.changes)
            lines.append(f"  with all of these the largest batch that fits is {self.batch_with_changes}")
        if not self.fits and not self.batch_with_changes:
            lines.append("nothing more to change saves enough: take a shorter sample, a smaller model or a larger card")
        return lines

    def refusal(self) -> str:
        """Return the line for `--strict`.

        Raises:
            ValueError: if the plan fits, or no card is named.
        """
        if self.fits is not False or self.memory_bytes is None:
            raise ValueError("a plan that fits has no refusal")
        largest = "" if self.largest_batch is None else f"; the largest batch that fits is {self.largest_batch}"
        context = f", {size_text(self.outside_bytes)} of it CUDA's context" if self.outside_bytes else ""
        return (
            f"does not fit: it needs {size_text(self.peak.bytes + self.outside_bytes)}{context}; "
            f"the card has {size_text(self.memory_bytes)}{largest}"
        )
