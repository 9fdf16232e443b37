"""The toy world as stage 0 reads it: pictures as the vision tower's pixels, and what stands in each of their patches.

All of it is drawn at once and kept in memory, a byte a colour; a picture is normalised when it is read.

Shapes: H x W pixels of a picture, P patches of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from llava_mini.data.toyworld.targets import vision_supervision


class Scenes(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """The first scenes of a stream: pixels [3, H, W] float32 and for every target the class of each patch, [P] int64.

    Args:
        stream: Name of the stream of scenes.
        seed: Of the world.
        count: Number of scenes.
        mean: Of each of the three colours, from 0 to 1; subtracted.
        std: Of each of the three colours; divided by.
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
