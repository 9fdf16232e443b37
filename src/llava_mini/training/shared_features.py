"""Features of the frozen vision tower, computed once for all runs of a sweep that read the same ones."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict

from llava_mini.config import Config

log = logging.getLogger("llava_mini")


def share_features(configs: list[Config]) -> None:
    """Compute the frozen vision tower's features once for all unfinished runs with the same data and tower."""
    shared: dict[str, list[Config]] = {}
    for config in configs:
        if config.data.features:
            shared.setdefault(features_of(config), []).append(config)
    if not shared:
        return
    from llava_mini.training.run import assemble  # takes seconds to import

    for group in shared.values():
        splits = assemble(group[0]).datamodule.splits.values()
        readers = {id(reader): reader for mix in splits for reader in mix.readers}
        stores = [reader.features for reader in readers.values() if reader.features is not None]
        seconds = sum(store.seconds for store in stores)
        log.info(
            "vision features of %d images: computed once in %.1f s, shared by the %d runs to do, which saves %.1f s",
            sum(len(store) for store in stores), seconds, len(group), seconds * (len(group) - 1),
        )  # fmt: skip


def features_of(config: Config) -> str:
    """Return a key of what the vision tower's features depend on: images, views, vision tower and its weights."""
    data, model = asdict(config.data), asdict(config.model)
    images = {
        key: data[key]
        for key in ("folder", "world_seed", "sizes", "train", "val", "test", "views", "background", "features")
    }
    tower = {
        key: model[key]
        for key in ("vision_config", "vision_feature_layer", "image_processor", "weights", "vision_tower")
    }
    return json.dumps([images, tower], sort_keys=True)
