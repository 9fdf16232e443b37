"""Handwritten digits for the boxes of the toy world, in one fixed split.

The 1797 digits come with scikit-learn. A fixed permutation assigns 70 % to training, 10 % to validation and 20 % to
test, whatever the seed of a world. So no test digit is a training digit in any world.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Split = Literal["train", "val", "test"]
DIGIT_SIZE = 12
_TRAIN_END, _VAL_END = 0.7, 0.8


@dataclass(frozen=True)
class DigitBank:
    """The digits of one split: rows of scikit-learn's data set [n], ink from 0 to 1 [n, 12, 12], and labels [n]."""

    indices: NDArray[np.int64]
    images: NDArray[np.float32]
    labels: NDArray[np.int64]


@cache
def digit_bank(split: Split) -> DigitBank:
    """Return the digits of `split`, enlarged from 8x8 to 12x12 pixels."""
    from sklearn.datasets import load_digits  # takes half a second; imported only where scenes are made

    data = load_digits()
    # NumPy's policy freezes the stream of RandomState, so the split cannot change with a new version.
    order = np.random.RandomState(0).permutation(len(data.target))
    train_end, val_end = int(_TRAIN_END * len(order)), int(_VAL_END * len(order))
    rows = {"train": order[:train_end], "val": order[train_end:val_end], "test": order[val_end:]}[split]
    ink = (data.images[rows] * 255 / 16).astype(np.uint8)
    size = (DIGIT_SIZE, DIGIT_SIZE)
    large = np.stack([np.asarray(Image.fromarray(digit).resize(size, Image.Resampling.BILINEAR)) for digit in ink])
    images: NDArray[np.float32] = large.astype(np.float32) / np.float32(255)
    return DigitBank(rows.astype(np.int64), images, data.target[rows].astype(np.int64))
