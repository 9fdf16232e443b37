"""Computes features of the frozen vision tower once for a shard set, and stores them for all runs that use them.

They are a shard set too, with the same samples in the same order and shards, so they are streamed like pixels:

    000000-00000.json   {"frames": F}, F = 0 for text; with "unusable": reason where an image is damaged
    000000-00000.npy    [F, V, N, Dv] in one of the types of `codec.py`
    features.json       what is computed in this folder; written first, so that nothing else is mixed in
    shards.json         written last; its plan contains the type, the storage error and the computing time

Shapes: F frames of a sample, V views of a frame, N patches of a view, Dv vision width, H x W pixels of a view.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llava_mini.data.features.codec import FeatureType, StorageError, packed, unpacked
from llava_mini.data.format.index import Members, Modality, image_names, read_sidecar
from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.format.shards import finish_set, is_complete, is_written, sidecar_path, write_shard
from llava_mini.data.stream.loading import Transport, made_in_order
from llava_mini.data.stream.pixels import PixelTransform
from llava_mini.errors import SampleError, UserError
from llava_mini.files import folder_lock, read_json, remove_leftovers, write_json

EncodeImages = Callable[[Tensor], Tensor]  # from views of a transform, [n, 1, 3, H, W], to [n, 1, N, Dv]

# Increase it with any change of the code that gives other features for the same images and vision tower.
FEATURES_VERSION = 4
_RECIPE_FILE = "features.json"


@dataclass(frozen=True)
class FeatureRecipe:
    """Facts that the features depend on, besides the images.

    `tower` is the fingerprint of the vision tower and of how its pixels are made, `shape` (V, N, Dv) that of an image's
    features; frames of videos have one view.
    """

    tower: str
    shape: tuple[int, int, int]
    dtype: FeatureType = "float16"

    def fingerprint(self, shards: ShardSet) -> str:
        """Return the fingerprint of the features of `shards`, in any type; it can be the name of their folder."""
        return hashlib.sha256(f"{shards.fingerprint} {self.tower} {self.shape}".encode()).hexdigest()


class FeatureStore:
    """Stored features, read by sample number; the store can be pickled.

    Attributes:
        fingerprint: Fingerprint of data, vision tower and shape.
        data_fingerprint: Fingerprint of the shard set that the features were computed from.
        shape, dtype: Those of `FeatureRecipe`.
        images: Number of images and video frames that have features.
        bytes: Size of the features in bytes, without the tars' headers.
        error: Difference between the stored features and the computed ones.
        seconds: Computing time in seconds, which every run that shares the features saves.
        unusable: Number of samples whose images could not be used.
    """

    def __init__(self, folder: Path | str) -> None:
        """Open a complete store.

        Raises:
            UserError: There is no complete store, or its files are damaged.
        """
        self.folder = Path(folder)
        self._shards = ShardSet(self.folder)
        try:
            facts = (self._shards.plan or {})["features"]
            self.fingerprint: str = facts["fingerprint"]
            self.data_fingerprint: str = facts["data"]
            self.dtype: FeatureType = facts["dtype"]
            self.images: int = facts["pictures"]
            self.bytes: int = facts["bytes"]
            self.error = StorageError(**facts["error"])
            self.seconds: float = facts["seconds"]
            self.shape: tuple[int, ...] = tuple(facts["shape"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{self.folder} is a shard set, but not one of features ({error!r})") from None
        self.unusable = self._shards.rejected

    @classmethod
    def build(
        cls,
        folder: Path | str,
        shards: ShardSet,
        encode: EncodeImages,
        recipe: FeatureRecipe,
        transform: PixelTransform,
        *,
        batch_size: int = 64,
        num_workers: int = 0,
        transport: Transport = "shared_memory",
        on_shard: Callable[[int], None] = lambda _: None,
    ) -> FeatureStore:
        """Return the store in `folder`, computed if it is missing; one of several processes computes, the others wait.

        Shards that an interrupted attempt has completed are kept. A complete store is opened whatever its type. Samples
        without images have no features. The images are decoded by `transform` in `num_workers` processes (0: in this
        one), and `batch_size` views are encoded together. `on_shard` gets the number of complete shards after each.

        Raises:
            UserError: The folder contains something else, or a part of these features in another type.
        """
        folder = Path(folder)
        with folder_lock(folder):
            remove_leftovers(folder)
            if is_complete(folder):
                store = cls(folder)
                if store.fingerprint != recipe.fingerprint(shards):
                    raise _holds_other(folder, "features of other data or another tower")
                return store
            _claim(folder, shards, recipe)
            work = _Work(shards, encode, recipe, transform, batch_size, num_workers, transport)
            for shard in range(shards.num_shards):
                if not is_written(folder, shard):
                    work.write(folder, shard)
                on_shard(shard + 1)
            finish_set(folder, shards.num_shards, {"features": _facts(folder, shards, recipe)})
        return cls(folder)

    def __len__(self) -> int:
        return len(self._shards)

    def read(self, index: int) -> Tensor:
        """Return the features of sample `index`, float32 [F, V, N, Dv].

        Raises:
            SampleError: The sample has no images, or they could not be used when the features were computed.
        """
        members = self._shards.read(index)
        try:
            record = json.loads(members["json"])
        except (KeyError, ValueError) as error:
            raise SampleError(f"its features are damaged ({error})") from None
        if "unusable" in record:
            raise SampleError(record["unusable"])
        features = unpacked(members)
        of_images, of_videos = ((record["frames"], views, *self.shape[1:]) for views in (self.shape[0], 1))
        if features.shape not in (of_images, of_videos):
            raise SampleError(f"its features have shape {features.shape}, not {of_images}")
        return torch.from_numpy(features)


def _claim(folder: Path, shards: ShardSet, recipe: FeatureRecipe) -> None:
    """Record what is computed in a folder, or check that it is the same as before."""
    path = folder / _RECIPE_FILE
    wanted = {"fingerprint": recipe.fingerprint(shards), "dtype": recipe.dtype}
    if not path.exists():
        if any(folder.glob("shard-*")):
            raise _holds_other(folder, "a shard set")
        write_json(path, wanted)
    elif (found := read_json(path)) != wanted:
        if found.get("fingerprint") == wanted["fingerprint"]:
            raise _holds_other(folder, f"a part of these features as {found.get('dtype')}, not {recipe.dtype}")
        raise _holds_other(folder, "a part of features of other data or another tower")


def _holds_other(folder: Path, what: str) -> UserError:
    return UserError(f"{folder} holds {what}; delete it or name another")


def _facts(folder: Path, shards: ShardSet, recipe: FeatureRecipe) -> dict[str, Any]:
    """Return the facts about the whole store, with sums over the shards' sidecars."""
    notes = [read_sidecar(sidecar_path(folder, shard))["notes"] for shard in range(shards.num_shards)]
    error = StorageError()
    for note in notes:
        error.merge(StorageError(**note["error"]))
    return {
        "fingerprint": recipe.fingerprint(shards),
        "data": shards.fingerprint,
        "tower": recipe.tower,
        "shape": list(recipe.shape),
        "dtype": recipe.dtype,
        **{name: sum(note[name] for note in notes) for name in ("pictures", "bytes", "seconds")},
        "error": asdict(error),
    }


@dataclass(frozen=True)
class _Work:
    """Computes and writes shards of features; the arguments are those of `FeatureStore.build`."""

    shards: ShardSet
    encode: EncodeImages
    recipe: FeatureRecipe
    transform: PixelTransform
    batch_size: int
    num_workers: int
    transport: Transport

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
            notes.update(seconds=time.perf_counter() - start, error=asdict(error))

        write_shard(folder, shard, samples(), rejected, notes)

    def _features(self, indices: range) -> Iterator[tuple[int, NDArray[np.float32] | str]]:
        """Yield features of samples in order, or why they have none; frames of several samples are encoded together."""
        decode = _Decoded(self.shards, self.transform)
        decoded = made_in_order(
            decode, indices, num_workers=self.num_workers, setting="--workers", transport=self.transport
        )
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
            return self.transform([members[name] for name in image_names(members)], is_video)
        except SampleError as error:
            return str(error)


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
