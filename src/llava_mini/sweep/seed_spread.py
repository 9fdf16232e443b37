"""How far apart two seeds of one configuration end, measured: what a comparison without enough seeds cannot see below.

The figures are of the tiny world's study (experiments/007-compression/spread.json): in percentage points of the
headline metric of a group of kinds, what two runs of equally good configurations stay within 95 times of 100, rounded
up. The standard deviations are pooled over configurations, of which those with one token spread more and `none` hardly
at all. Data of one's own may spread more or less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from llava_mini.sweep.statistics import FEWEST_SEEDS
from llava_mini.sweep.text import on_group

SOURCE = (
    "How far seeds lie apart was measured in the tiny world (experiments/007-compression) and may differ elsewhere."
)
SPREAD_POINTS: Mapping[str, float] = MappingProxyType({"dense": 5.0, "one_word": 5.0})


def few_seeds(seeds: int, groups: Sequence[str], in_common: bool = False) -> str:
    """What one or two seeds cannot tell, as a sentence.

    Args:
        seeds: Number of common seeds that there are, below `FEWEST_SEEDS`.
        groups: Groups of kinds that are reported.
        in_common: Whether configurations have more seeds, but no more in common.
    """
    named = {1: "One seed", 2: "Two seeds"}[seeds] + " in common" * in_common
    limits = [f"{SPREAD_POINTS[group]:g} points{on_group(group, groups)}" for group in groups]
    return (
        f"{named}: differences under about {' or '.join(limits)} mean nothing, and this report compares nothing: "
        f"that takes {FEWEST_SEEDS} seeds."
    )
