"""Writer of tensors in transformers' format: safetensors of bounded size, with an index if there are several."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from llava_mini.models.tensor_files import save_tensors
from llava_mini.units import GIB

SHARD_BYTES = 2 * GIB


class ShardWriter:
    """Writer that takes tensors one by one and keeps at most one shard of them in memory.

    A shard with a single tensor may exceed `shard_bytes`.
    """

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES):
        self.folder, self.shard_bytes = folder, shard_bytes
        self._shards: list[list[str]] = []
        self._held: dict[str, Tensor] = {}
        self._held_bytes = self._total = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Write one tensor, now or together with the next ones; it is copied."""
        if self._held and self._held_bytes + tensor.nbytes > self.shard_bytes:
            self._flush()
        # A copy: a tensor from a mapped file, or one that shares memory with another, cannot be saved directly.
        self._held[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
        self._held_bytes += tensor.nbytes

    def close(self) -> None:
        """Write the remaining tensors, give the shards their names, and write the index."""
        self._flush()
        count = len(self._shards)
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            file = f"model-{number + 1:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors"
            self._part(number).rename(self.folder / file)
            weight_map |= dict.fromkeys(names, file)
        if count > 1:
            index = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(weight_map.items()))}
            (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")

    def _flush(self) -> None:
        if self._held:
            save_tensors(self._held, self._part(len(self._shards)), {"format": "pt"})
            self._shards.append(list(self._held))
        self._total += self._held_bytes
        self._held, self._held_bytes = {}, 0

    def _part(self, number: int) -> Path:
        return self.folder / f"part-{number}"
