"""Stores features of the frozen vision tower, computed once for a shard set and shared by all runs that use them.

They are a shard set too, with the same samples in the same order and shards, so they are streamed like pixels:

    000000-00000.json   {"frames": F}, F = 0 for text; with "unusable": reason where an image is damaged
    000000-00000.npy    [F, V, N, Dv] in one of the types of `feature_codec.py`
    features.json       what is computed in this folder; written first, so that nothing else is mixed in
    shards.json         written last; its plan contains the type, the storage error and the computing time

Shapes: F frames of a sample, V views of a frame, N patches of a view, Dv vision width, H x W pixels of a view.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava_mini.data.features.codec import FeatureType, StorageError, unpacked
from llava_mini.data.features.work import EncodePictures, FeatureRecipe, FeatureWork
from llava_mini.data.format.index import read_sidecar
from llava_mini.data.format.shards import ShardSet, finish_set, is_complete, is_written, sidecar_path
from llava_mini.data.stream.pixels import PixelTransform
from llava_mini.errors import SampleError, UserError
from llava_mini.files import folder_lock, read_json, remove_leftovers, write_json

# Increase it with any change of the code that gives other features for the same images and vision tower.
FEATURES_VERSION = 4
_RECIPE_FILE = "features.json"


class FeatureStore:
    """Stored features, read by sample number; the store can be pickled.

    Attributes:
        folder: Folder of the store.
        fingerprint: Fingerprint of data, vision tower and shape.
        data_fingerprint: Fingerprint of the shard set that the features were computed from.
        shape: Shape (V, N, Dv) of an image's features; frames of videos have one view.
        dtype: Type in which the features are stored.
        pictures: Number of images and video frames that have features.
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
            self.pictures: int = facts["pictures"]
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
        encode: EncodePictures,
        recipe: FeatureRecipe,
        transform: PixelTransform,
        *,
        batch_size: int = 64,
        num_workers: int = 0,
        on_shard: Callable[[int], None] = lambda _: None,
    ) -> FeatureStore:
        """Return the store in `folder`, computed if it is missing; one of several processes computes, the others wait.

        Shards that an interrupted attempt has completed are kept. A complete store is opened whatever its type.

        Args:
            folder: Folder for this store alone.
            shards: Shard set with the samples; samples without images have no features.
            encode: Function that encodes the views that `transform` returns as features.
            recipe: Facts that the features depend on.
            transform: Transform that decodes the images of a sample.
            batch_size: Number of views that are encoded together.
            num_workers: Number of worker processes that decode; 0 decodes in this process.
            on_shard: Callback that receives the number of complete shards, after every shard.

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
            work = FeatureWork(shards, encode, recipe, transform, batch_size, num_workers)
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
        "error": error.to_dict(),
    }
