"""Numbers as people read them, the same in the terminal, the plots and the report."""

from __future__ import annotations

from llava_mini.sweep.statistics import Interval

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"


def percent(share: float) -> str:
    """0.8991 -> `89.9`."""
    return f"{100 * share:.1f}"


def percent_range(interval: Interval) -> str:
    """`88.1–91.0`."""
    return f"{percent(interval.low)}{DASH}{percent(interval.high)}"


def points(difference: float) -> str:
    """-0.0123 -> `−1.2`, in percentage points."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", MINUS)


def points_range(interval: Interval) -> str:
    """`−2.1 to +0.3`."""
    return f"{points(interval.low)} to {points(interval.high)}"


def operations(flops: float) -> str:
    """12_340_000 -> `12.3 MFLOPs`."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if flops >= 0.9995 * size:  # else it is rounded to 1000 of the unit below
            return f"{flops / size:.3g} {unit}FLOPs"
    return f"{flops:.0f} FLOPs"


def duration(seconds: float) -> str:
    """`42 s`, `3.4 min`, `2.5 h`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def memory(size: int) -> str:
    """`0.61 GB`."""
    return f"{size / 1e9:.2f} GB"


def tokens(count: int) -> str:
    """`1 vision token`, `64 vision tokens`."""
    return f"{count or 'no'} vision token{'' if count == 1 else 's'}"
