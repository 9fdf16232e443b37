"""Checkpoints that a kill cannot damage and that execute nothing when they are read.

A checkpoint holds trained weights, optimiser, scheduler and the position in the stream of batches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from llava_mini.errors import UserError
from llava_mini.files import atomic_path, writing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to disk and renames: a checkpoint is whole or not there; reads weights only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        target = Path(path)
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        try:
            loaded: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except Exception as error:  # torch raises many types for a broken file
            system = error.strerror if isinstance(error, OSError) else None
            reason = system or f"{type(error).__name__}: {error}".splitlines()[0]
            hint = "" if system else f"; {_last_good(Path(path))}delete it and the run begins anew"
            raise UserError(f"{path}: not a readable checkpoint ({reason}){hint}") from error
        return loaded


def _last_good(damaged: Path) -> str:
    """What a run may go on from in place of its last checkpoint: the best, which is as whole."""
    others = sorted(path.name for path in damaged.parent.glob("*.ckpt") if path.name != damaged.name)
    return f"put {others[0]} in its place to go on from there, or " if others else ""
