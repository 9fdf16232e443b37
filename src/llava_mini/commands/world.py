"""`llava-mini world`: the three checkpoints of the toy world, made again from the seed."""

from __future__ import annotations

from llava_mini.config import check_each_once
from llava_mini.training.world import make_tiny_world


def world(overrides: list[str], config_dirs: tuple[str, ...]) -> int:
    """Make the checkpoints, and return the exit status."""
    check_each_once(overrides)
    make_tiny_world(overrides, config_dirs)
    return 0
