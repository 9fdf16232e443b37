"""Computes features of the frozen vision tower: decodes images, encodes them in batches, writes shard by shard.

Shapes: F frames of a sample, V views of a frame, N patches of a view, Dv vision width, H x W pixels of a view.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llava_mini.data.features.codec import FeatureType, StorageError, packed, unpacked
from llava_mini.data.format.index import Modality
from llava_mini.data.format.shards import Members, ShardSet, picture_names, write_shard
from llava_mini.data.stream.loading import made_in_order
from llava_mini.data.stream.pixels import PixelTransform
from llava_mini.errors import SampleError

EncodePictures = Callable[[Tensor], Tensor]  # from views of a transform, [n, 1, 3, H, W], to [n, 1, N, Dv]


@dataclass(frozen=True)
class FeatureRecipe:
    """Facts that the features depend on, besides the images.

    Attributes:
        tower: Fingerprint of the vision tower and of how its pixels are made.
        shape: Shape (V, N, Dv) of an image's features; frames of videos have one view.
        dtype: Type in which the features are stored.
    """

    tower: str
    shape: tuple[int, int, int]
    dtype: FeatureType = "float16"

    def fingerprint(self, shards: ShardSet) -> str:
        """Return the fingerprint of the features of `shards`, in any type; it can be the name of their folder."""
        return hashlib.sha256(f"{shards.fingerprint} {self.tower} {self.shape}".encode()).hexdigest()


def _stored(found: NDArray[np.float32] | str, dtype: FeatureType, error: StorageError) -> tuple[dict[str, bytes], str]:
    """Return features as members, and why there are none; their storage error is added to `error`."""
    if isinstance(found, str):
        return {}, found
    try:
        members = packed(found, dtype)
    except SampleError as unusable:
        return {}, str(unusable)
    error.add(found, unpacked(members))
    return members, ""


class _Decoded:
    """Decodes a sample's images by `transform`; gives an empty string for text, and the reason for a damaged image."""

    def __init__(self, shards: ShardSet, transform: PixelTransform) -> None:
        self.shards, self.transform = shards, transform

    def __call__(self, index: int) -> Tensor | str:
        if not self.shards.frames(index):
            return ""
        try:
            members = self.shards.read(index)
            is_video = self.shards.modality(index) == Modality.VIDEO
            return self.transform([members[name] for name in picture_names(members)], is_video)
        except SampleError as error:
            return str(error)


@dataclass(frozen=True)
class FeatureWork:
    """Computes and writes shards of features.

    Args:
        shards: Shard set with the samples; samples without images have no features.
        encode: Function that encodes the views that `transform` returns as features.
        recipe: Facts that the features depend on.
        transform: Transform that decodes the images of a sample.
        batch_size: Number of views that are encoded together.
        num_workers: Number of worker processes that decode; 0 decodes in this process.
    """

    shards: ShardSet
    encode: EncodePictures
    recipe: FeatureRecipe
    transform: PixelTransform
    batch_size: int
    num_workers: int

    def write(self, folder: Path, shard: int) -> None:
        """Write the features of a shard's samples; its sidecar contains counts, computing time and storage error."""
        start, error = time.perf_counter(), StorageError()
        notes: dict[str, Any] = {"pictures": 0, "bytes": 0}
        rejected: list[tuple[str, str]] = []

        def samples() -> Iterator[tuple[str, Members]]:
            for index, found in self._features(self.shards.samples_of(shard)):
                key, record = self.shards.key(index), {"frames": self.shards.frames(index)}
                members, reason = _stored(found, self.recipe.dtype, error)
                if reason:
                    rejected.append((key, reason))
                elif members:
                    notes["pictures"] += record["frames"]
                    notes["bytes"] += sum(map(len, members.values()))
                yield key, {"json": json.dumps(record | ({"unusable": reason} if reason else {})).encode(), **members}
            notes.update(seconds=time.perf_counter() - start, error=error.to_dict())

        write_shard(folder, shard, samples(), rejected, notes)

    def _features(self, indices: range) -> Iterator[tuple[int, NDArray[np.float32] | str]]:
        """Yield features of samples in order, or why they have none; frames of several samples are encoded together."""
        decode = _Decoded(self.shards, self.transform)
        decoded = made_in_order(decode, indices, num_workers=self.num_workers, setting="--workers")
        waiting: list[tuple[int, Tensor | str]] = []
        views = 0
        for index, found in zip(indices, decoded, strict=True):
            waiting.append((index, found))
            views += 0 if isinstance(found, str) else found.shape[:2].numel()
            if views >= self.batch_size:
                yield from self._encoded(waiting)
                waiting, views = [], 0
        yield from self._encoded(waiting)

    def _encoded(self, waiting: list[tuple[int, Tensor | str]]) -> Iterator[tuple[int, NDArray[np.float32] | str]]:
        """Yield features of decoded samples; images and video frames are encoded together, and may differ in views."""
        pixels = [found for _, found in waiting if not isinstance(found, str)]
        views = [found.shape[:2].numel() for found in pixels]
        features = iter(self._of_views(pixels).split(views) if pixels else ())
        for index, found in waiting:
            yield index, found if isinstance(found, str) else next(features).unflatten(0, found.shape[:2]).numpy()

    @torch.inference_mode()
    def _of_views(self, pixels: list[Tensor]) -> Tensor:
        """Return features [n, N, Dv] of the n views of all frames, computed `batch_size` views at a time."""
        made = []
        for batch in torch.cat([each.flatten(0, 1) for each in pixels]).split(self.batch_size):
            features = self.encode(batch[:, None])
            if tuple(features.shape) != (expected := (len(batch), 1, *self.recipe.shape[1:])):
                raise ValueError(f"the encoder gave features of shape {tuple(features.shape)}, not {expected}")
            made.append(features[:, 0].float().cpu())
        return torch.cat(made)
