"""Features of the frozen vision tower, computed once for a shard set and shared by all runs that use them.

They are a shard set too, of the same samples in the same order and shards, so that they are streamed as pixels are:

    000000-00000.json   {"frames": F}, of text F = 0; with "unusable": reason where a picture is damaged
    000000-00000.npy    [F, V, N, Dv] in one of the types of `feature_codec.py`
    features.json       what is computed in this folder; written first, so that nothing else is mixed in
    shards.json         written last; its plan holds the type, what it changed and how long it took

Shapes: F frames of a sample, V views of a frame, N patches of a view, Dv vision width, H x W pixels of a view.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava_mini.data.errors import SampleError
from llava_mini.data.feature_codec import FeatureType, StorageError, unpacked
from llava_mini.data.feature_work import EncodePictures, FeatureRecipe, FeatureWork
from llava_mini.data.index import read_sidecar
from llava_mini.data.pixels import PixelTransform
from llava_mini.data.shards import ShardSet, finish_set, is_complete, is_written, sidecar_path
from llava_mini.errors import UserError
from llava_mini.files import folder_lock, read_json, remove_leftovers, write_json

# Any change of the code that makes other features of the same pictures and tower raises it.
FEATURES_VERSION = 4
_RECIPE_FILE = "features.json"


class FeatureStore:
    """Stored features, read by sample number; it can be pickled.

    Attributes:
        folder: where they lie.
        fingerprint: of data, tower and shape.
        data_fingerprint: of the shard set.
        shape: (V, N, Dv) of an image; frames of videos have one view.
        dtype: in which type they are stored.
        pictures: how many have features.
        bytes: what the features take, without the tars' headers.
        error: what storing them changed.
        seconds: what computing them took, which every run that shares them saves.
        unusable: samples whose pictures could not be used.
    """

    def __init__(self, folder: Path | str) -> None:
        """Opens a complete store.

        Raises:
            UserError: there is none, or its files are damaged.
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
        """The store in `folder`, computed if it is not there; of several processes one computes, the others wait.

        What an interrupted attempt has completed, shard by shard, is kept. A store that is complete is opened whatever
        its type.

        Args:
            folder: Of this store alone.
            shards: The samples; those without pictures have no features.
            encode: Makes features of views that `transform` gives.
            recipe: What the features depend on.
            transform: Decodes the pictures of a sample.
            batch_size: Views that are encoded together.
            num_workers: Processes that decode; 0: this one.
            on_shard: Is told how many shards are complete, after every one.

        Raises:
            UserError: the folder holds something else, or a part of features in another type.
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
        """[F, V, N, Dv] float32 of sample `index`.

        Raises:
            SampleError: it has no pictures, or they could not be used when the features were computed.
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
    """Notes what is computed in a folder, or makes sure that it is the same as before."""
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
    """What the shards' sidecars tell, in sum."""
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
