"""Features of the frozen vision tower, computed once for a shard set and shared by all runs that use them.

    FOLDER/features.npy   [samples, V, N, Dv], read through a memory map
    FOLDER/features.json  fingerprints of data and tower, seconds it took, reasons of unusable images; written last

Shapes: V views, N patches of a view, Dv vision width.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llava_mini.data.errors import SampleError
from llava_mini.data.images import pixels_of
from llava_mini.data.shards import ShardSet, picture_names
from llava_mini.errors import UserError
from llava_mini.files import atomic_path, folder_lock, write_json
from llava_mini.views import ImageTransform

# Any change of the code that makes other features of the same pictures and tower raises it.
FEATURES_VERSION = 1
_ARRAY, _FACTS = "features.npy", "features.json"

EncodeImages = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FeatureRecipe:
    """What the features depend on.

    Attributes:
        tower: Fingerprint of the vision tower and of how its pixels are made.
        shape: (V, N, Dv).
        dtype: Of the stored numbers: "float16" or "float32".
    """

    tower: str
    shape: tuple[int, int, int]
    dtype: str = "float16"

    def fingerprint(self, shards: ShardSet) -> str:
        """Of the features of `shards`; fit to name their folder."""
        text = f"{shards.fingerprint} {self.tower} {self.shape} {self.dtype}"
        return hashlib.sha256(text.encode()).hexdigest()


class FeatureStore:
    """Stored features, read by sample number.

    Attributes:
        folder: where they lie.
        fingerprint: of data, tower, shape and type.
        data_fingerprint: of the shard set.
        seconds: what computing them took, which every run that shares them saves.
    """

    def __init__(self, folder: Path | str) -> None:
        """Opens a complete store.

        Raises:
            UserError: there is none, or its files are damaged.
        """
        self.folder = Path(folder)
        facts = _facts(self.folder)
        if facts is None:
            raise UserError(f"{self.folder} holds no complete features (no {_FACTS})")
        self.fingerprint: str = facts["fingerprint"]
        self.data_fingerprint: str = facts["data"]
        self.seconds: float = facts["seconds"]
        self._unusable: dict[str, str] = facts["unusable"]
        self._array = self._mapped()
        if list(self._array.shape) != facts["array_shape"]:
            raise UserError(f"{self.folder / _ARRAY} has shape {self._array.shape}, not {facts['array_shape']}")

    @classmethod
    def build(
        cls,
        folder: Path | str,
        shards: ShardSet,
        encode: EncodeImages,
        recipe: FeatureRecipe,
        transform: ImageTransform,
        batch_size: int = 64,
    ) -> FeatureStore:
        """The store in `folder`, computed if it is not there; of several processes one computes, the others wait.

        Args:
            folder: Of this store alone.
            shards: The samples; those without an image keep a row of zeros that nobody reads.
            encode: Pixels [n, V, 3, H, W] to features [n, V, N, Dv].
            recipe: What the features depend on.
            transform: Image to pixels [V, 3, H, W].
            batch_size: Images that are encoded together.

        Raises:
            UserError: the folder holds features of other data, another tower, shape or type.
        """
        folder = Path(folder)
        fingerprint = recipe.fingerprint(shards)
        with folder_lock(folder):
            facts = _facts(folder)
            if facts is None:
                _compute(folder, shards, encode, recipe, transform, batch_size)
            elif facts["fingerprint"] != fingerprint:
                raise UserError(f"{folder} holds features of other data or another tower; delete it or name another")
        return cls(folder)

    def __len__(self) -> int:
        return len(self._array)

    def read(self, index: int) -> Tensor:
        """[F, V, N, Dv] float32 of sample `index`, of which only the first picture (F = 1) is kept.

        Raises:
            SampleError: its image could not be decoded.
        """
        if (reason := self._unusable.get(str(index))) is not None:
            raise SampleError(reason)
        return torch.from_numpy(self._array[index].astype(np.float32))[None]

    def _mapped(self) -> NDArray[Any]:
        path = self.folder / _ARRAY
        try:
            array: NDArray[Any] = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}); delete {self.folder}") from None
        return array

    def __getstate__(self) -> dict[str, Any]:
        """The map does not travel to another process (it would be copied)."""
        return {**self.__dict__, "_array": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._array = self._mapped()


def _facts(folder: Path) -> dict[str, Any] | None:
    path = folder / _FACTS
    if not path.exists():
        return None
    try:
        facts: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); delete {folder}") from None
    return facts


def _compute(
    folder: Path,
    shards: ShardSet,
    encode: EncodeImages,
    recipe: FeatureRecipe,
    transform: ImageTransform,
    batch_size: int,
) -> None:
    start = time.perf_counter()
    unusable: dict[str, str] = {}
    shape = (len(shards), *recipe.shape)
    with atomic_path(folder / _ARRAY) as temporary, torch.inference_mode():
        array = np.lib.format.open_memmap(temporary, "w+", np.dtype(recipe.dtype), shape)
        for first in range(0, len(shards), batch_size):
            indices, pixels = _pixels(shards, range(first, min(first + batch_size, len(shards))), transform, unusable)
            if not indices:
                continue
            features = encode(torch.stack(pixels))
            if tuple(features.shape) != (expected := (len(indices), *recipe.shape)):
                raise ValueError(f"the encoder gave features of shape {tuple(features.shape)}, not {expected}")
            array[indices] = features.float().cpu().numpy()
        array.flush()
    facts = {
        "fingerprint": recipe.fingerprint(shards),
        "data": shards.fingerprint,
        "tower": recipe.tower,
        "array_shape": list(shape),
        "seconds": time.perf_counter() - start,
        "unusable": unusable,
    }
    write_json(folder / _FACTS, facts)


def _pixels(
    shards: ShardSet, indices: range, transform: ImageTransform, unusable: dict[str, str]
) -> tuple[list[int], list[Tensor]]:
    """Samples with an image and their pixels; those whose image is damaged are noted in `unusable`."""
    usable, pixels = [], []
    for index in indices:
        if not shards.frames(index):
            continue
        try:
            members = shards.read(index)
            pixels.append(pixels_of(members[picture_names(members)[0]], transform))
            usable.append(index)
        except SampleError as error:
            unusable[str(index)] = str(error)
    return usable, pixels
