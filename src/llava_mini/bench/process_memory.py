"""Memory that a process does not share, as the kernel counts it. It is what one more worker costs."""

from __future__ import annotations

from pathlib import Path


def private_memory() -> float:
    """MiB that only this process has, pages of files that no other has mapped among them."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    kib = {name: int(value.split()[0]) for name, value in (line.split(":") for line in lines)}
    return (kib["Private_Clean"] + kib["Private_Dirty"]) / 1024
