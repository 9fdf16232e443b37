"""The toy world as stage 0 reads it: images as pixels for the vision tower, and the object in each of their patches.

All images are drawn at once and stored in memory, one byte per color channel. An image is normalized when it is read.

Shapes: H x W pixels of an image, P patches of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from llava_mini.data.toyworld.targets import vision_supervision


class Scenes(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """First images of a stream: pixels [3, H, W] float32 and, for every target, the class of each patch, [P] int64.

    Args:
        stream: Name of the stream of scenes or boards.
        seed: Seed of the world.
        count: Number of images.
        mean: Mean of each of the three color channels, from 0 to 1, which is subtracted.
        std: Standard deviation of each of the three color channels, by which the pixels are divided.
    """

    def __init__(self, stream: str, seed: int, count: int, *, mean: Sequence[float], std: Sequence[float]):
        images, targets = vision_supervision(stream, seed, count)
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2)
        self.targets = {name: torch.from_numpy(target) for name, target in targets.items()}
        self.mean = torch.tensor(mean)[:, None, None]
        self.std = torch.tensor(std)[:, None, None]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = (self.images[index] / 255 - self.mean) / self.std
        return pixels, {name: target[index] for name, target in self.targets.items()}
