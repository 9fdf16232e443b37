"""A patch is taught the object that covers most of it, told again by counting points."""

import numpy as np
import pytest

from llava_mini.data.toyworld.drawing import COLOR_NAMES
from llava_mini.data.toyworld.scenes import KINDS, SceneObject, scene_at
from llava_mini.data.toyworld.vision import TARGET_CLASSES, patch_targets, vision_supervision


def test_patches_are_taught_what_covers_most_of_them() -> None:
    made = [scene_at("vision-train", 0, index) for index in range(12)]
    targets = patch_targets([scene.objects for scene in made])
    points = np.arange(0.05, 64, 0.1)
    for number, scene in enumerate(made):
        for patch in range(64):
            top, left = patch // 8 * 8, patch % 8 * 8
            area = [
                ((points > max(o.x, left)) & (points < min(o.x + o.size, left + 8))).sum() / 10
                * ((points > max(o.y, top)) & (points < min(o.y + o.size, top + 8))).sum() / 10
                for o in scene.objects
            ]  # fmt: skip
            ranks = np.sort(area)
            if abs(ranks[-1] - 10) < 2 or ranks[-1] - ranks[-2] < 2:
                continue  # too near for counting to decide
            found = {name: int(values[number, patch]) for name, values in targets.items()}
            if ranks[-1] < 10:
                assert found == {"kind": 0, "color": 0, "digit": 0, "center_x": -100, "center_y": -100}
                continue
            thing = scene.objects[int(np.argmax(area))]
            assert KINDS[found["kind"] - 1] == thing.kind
            assert COLOR_NAMES[found["color"] - 1] == thing.color
            assert found["digit"] == (0 if thing.digit is None else thing.digit + 1)
            assert found["center_x"] * 16 <= thing.x + thing.size / 2 < found["center_x"] * 16 + 16
            assert found["center_y"] * 16 <= thing.y + thing.size / 2 < found["center_y"] * 16 + 16


def test_classes_stay_in_their_range_and_all_occur() -> None:
    images, targets = vision_supervision("vision-val", 0, 80)
    assert images.shape == (80, 64, 64, 3)
    assert images.dtype == np.uint8
    for name, classes in TARGET_CLASSES.items():
        values = targets[name]
        assert values.shape == (80, 64)
        assert values.dtype == np.int64
        assert set(np.unique(values[values != -100])) == set(range(classes)), name
    assert ((targets["center_x"] == -100) == (targets["kind"] == 0)).all()
    assert 0.3 < (targets["kind"] > 0).mean() < 0.6


def test_pictures_are_those_of_the_stream() -> None:
    images, _ = vision_supervision("caption-train", 3, 4)
    for image, scene in zip(images, [scene_at("caption-train", 3, index) for index in range(4)], strict=True):
        assert (image == scene.image).all()


@pytest.mark.parametrize(("x", "patches"), [(0, [0, 1]), (7.5, [1, 2]), (4, [0, 1, 2])])
def test_a_single_box(x: float, patches: list[int]) -> None:
    targets = patch_targets([[SceneObject("box", "red", 4, x, 0, 14)]])
    assert np.flatnonzero(targets["digit"][0, :8] == 5).tolist() == patches
