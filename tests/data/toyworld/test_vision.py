"""Stage 0 learns from the pixels that the model's own image processor would make, each with its own targets."""

import torch
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessorPil

from llava_mini.data.toyworld.vision import TARGET_CLASSES, Scenes, vision_supervision

MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.8]


def test_pictures_are_normalized_as_the_model_will_see_them() -> None:
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, image_mean=MEAN, image_std=STD
    )
    scenes = Scenes("vision-val", 0, 3, mean=MEAN, std=STD)
    images, targets = vision_supervision("vision-val", 0, 3)
    assert len(scenes) == 3
    for index in (2, 0):
        pixels, target = scenes[index]
        expected = processor(images[index], return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(pixels, expected, atol=1e-5, rtol=0)
        assert target.keys() == TARGET_CLASSES.keys()
        assert all(torch.equal(target[name], torch.from_numpy(targets[name][index])) for name in targets)


def test_streams_and_seeds_are_other_scenes() -> None:
    first = Scenes("vision-val", 0, 1, mean=MEAN, std=STD)[0][0]
    for stream, seed in (("vision-train", 0), ("vision-val", 1)):
        assert not torch.equal(Scenes(stream, seed, 1, mean=MEAN, std=STD)[0][0], first)


def test_scenes_go_into_batches() -> None:
    pixels, target = next(iter(DataLoader(Scenes("vision-val", 0, 3, mean=MEAN, std=STD), batch_size=2)))
    assert pixels.shape == (2, 3, 64, 64)
    assert pixels.dtype == torch.float32
    assert {name: tuple(classes.shape) for name, classes in target.items()} == dict.fromkeys(TARGET_CLASSES, (2, 64))
