"""Runs share the features of the vision tower where images and tower are the same."""

from typing import Any

import pytest

from llava_mini.config import Config, resolve
from llava_mini.training.shared_features import features_of, share_features


def test_features_depend_on_pictures_and_tower_only() -> None:
    base = resolve(["recipe=smoke"])

    def of(key: str, value: Any) -> str:
        values = base.to_dict()
        *path, last = key.split("/")
        node = values
        for part in path:
            node = node[part]
        assert node[last] != value
        node[last] = value
        return features_of(Config.read(values))

    same = {"compressor": {"_target_": "mine"}, "fusion/num_layers": 0, "seed": 3, "data/batch_size": 2,
            "data/turns": "conversation",
            "model/text_config/num_hidden_layers": 9, "trainer/max_steps": 1, "run_dir": "x"}  # fmt: skip
    assert {of(*change) for change in same.items()} == {features_of(base)}
    other = {"data/folder": "x", "data/world_seed": 1, "data/sizes/instruct-train": 65, "data/test": None,
             "data/views": "hd", "data/background": [0, 0, 0], "data/features": "x", "model/vision_feature_layer": -2,
             "model/vision_config/hidden_act": "relu",
             "model/image_processor/size": {"shortest_edge": 32}, "model/weights": []}  # fmt: skip
    assert len({features_of(base), *(of(*change) for change in other.items())}) == 1 + len(other)


def test_what_is_not_cached_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_mini.training.run.assemble", lambda config: pytest.fail("assembled"))
    share_features([resolve(["recipe=smoke", "data.features=false"])])
    share_features([])
