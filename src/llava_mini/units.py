"""Sizes as text, in binary units: everywhere the same, in memory and on disk; and the largest number of anything."""

from __future__ import annotations

KIB, MIB, GIB = 2**10, 2**20, 2**30
MOST = 2**40  # of anything that is counted; beyond it a number is a mistake
MOST_GIB = 2**20  # of memory, more than any machine has


def size_text(size: float) -> str:
    """Return a number of bytes as text, such as `1.50 GiB`.

    Below 0.1 of a unit the next smaller one is used: `5.12 MiB`, `0.98 KiB`.
    """
    for unit, name in ((GIB, "GiB"), (MIB, "MiB")):
        if abs(size) >= 0.1 * unit:
            return f"{size / unit:,.2f} {name}"
    return f"{size / KIB:.2f} KiB"


def gib_text(size: float) -> str:
    """Return a number of bytes in GiB without the unit, for a column of a table."""
    gib = size / GIB
    return f"{gib:.2f}" if gib >= 0.01 else f"{gib:.1g}"
