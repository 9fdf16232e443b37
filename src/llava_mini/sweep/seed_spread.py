"""Measured spread of two seeds of one configuration; smaller differences mean nothing without enough seeds.

The figures are from the toy world's study (experiments/007-compression/spread.json). They are in percentage points of
the headline metric of a group of question kinds: the distance that two runs of equally good configurations stay within
95 times out of 100, rounded up. The standard deviation is that of the least stable configuration, since which ones are
stable is not known before they have run; near the ceiling seeds hardly spread. Your own data may spread more or less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from llava_mini.sweep.statistics import FEWEST_SEEDS
from llava_mini.sweep.text import on_group

SOURCE = "How far seeds are apart was measured in the toy world (experiments/007-compression) and may differ elsewhere."
SPREAD_POINTS: Mapping[str, float] = MappingProxyType({"dense": 10.0, "one_word": 13.0})


def few_seeds(seeds: int, groups: Sequence[str], in_common: bool = False) -> str:
    """Sentence on what one or two seeds cannot show; `in_common` if configurations have more, but no more in common."""
    named = {1: "One seed", 2: "Two seeds"}[seeds] + " in common" * in_common
    limits = [f"{SPREAD_POINTS[group]:g} points{on_group(group, groups)}" for group in groups]
    return (
        f"{named}: differences under about {' or '.join(limits)} mean nothing, and this report compares nothing: "
        f"that takes {FEWEST_SEEDS} seeds."
    )
