"""Numbers and names as text for people, the same in the terminal, the plots and the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llava_mini.sweep.statistics import Estimate

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
_GROUPS = {"dense": "dense answers", "one_word": "one-word answers"}


def group_head(group: str, groups: Sequence[str]) -> str:
    """Heading of a group: `Dense answers`; `Word accuracy` if all kinds are in one group."""
    return _GROUPS[group].capitalize() if len(groups) > 1 else "Word accuracy"


def on_group(group: str, groups: Sequence[str]) -> str:
    """Text ` on dense answers`; empty if all kinds are in one group."""
    return f" on {_GROUPS[group]}" if len(groups) > 1 else ""


def percent(share: float) -> str:
    """Share as text in percent: 0.8991 -> `89.9`."""
    return f"{100 * share:.1f}"


def percent_range(estimate: Estimate) -> str:
    """Interval as text in percent: `88.1–91.0`; empty without an interval."""
    return "" if estimate.interval is None else DASH.join(map(percent, estimate.interval))


def points(difference: float) -> str:
    """Difference as text in percentage points: -0.0123 -> `−1.2`."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", MINUS)


def points_range(estimate: Estimate) -> str:
    """Interval as text in percentage points: `−2.1 to +0.3`; empty without an interval."""
    return "" if estimate.interval is None else " to ".join(map(points, estimate.interval))


def operations(flops: float) -> str:
    """Number of operations as text: 12_340_000 -> `12.3 MFLOPs`."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if flops >= 0.9995 * size:  # otherwise it is rounded to 1000 of the unit below
            return f"{flops / size:.3g} {unit}FLOPs"
    return f"{flops:.0f} FLOPs"


def duration(seconds: float) -> str:
    """Duration as text: `42 s`, `3.4 min`, `2.5 h`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
