"""Checkpoints that a kill cannot damage and that execute no code when they are read.

A checkpoint contains trained weights, optimizer, scheduler and the position in the stream of batches.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from llava_mini.errors import UserError
from llava_mini.files import atomic_path, writing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary file, flushes and renames, so a checkpoint is complete or absent; reads weights only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        target = Path(path)
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        try:
            loaded: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except Exception as error:  # torch raises many types of exceptions for a broken file
            # torch reports a file that was cut off as an invalid argument
            system = error.strerror if isinstance(error, OSError) and error.errno != errno.EINVAL else None
            # the first sentence: torch's second one advises to execute what the file contains
            reason = system or f"{type(error).__name__}: {error}".splitlines()[0].split(". ")[0]
            hint = "" if system else f"; {_last_good(Path(path))}delete it and the run starts again"
            raise UserError(f"{path}: not a readable checkpoint ({reason}){hint}") from error
        return loaded


def _last_good(damaged: Path) -> str:
    """Hint at a checkpoint to resume from instead of the damaged last one: the best, which is also complete."""
    others = sorted(path.name for path in damaged.parent.glob("*.ckpt") if path.name != damaged.name)
    return f"put {others[0]} in its place to continue from there, or " if others else ""
