"""The digits of the splits have nothing in common."""

import numpy as np

from llava_mini.data.toyworld.drawing import digit_bank


def test_splits_are_disjoint_and_complete() -> None:
    banks = [digit_bank(split) for split in ("train", "val", "test")]
    indices = np.concatenate([bank.indices for bank in banks])
    assert sorted(indices) == list(range(1797))
    assert [round(len(bank.indices) / 1797, 2) for bank in banks] == [0.7, 0.1, 0.2]
    pictures = [{digit.tobytes() for digit in bank.images} for bank in banks]
    assert not pictures[0] & pictures[1]
    assert not pictures[0] & pictures[2]
    assert not pictures[1] & pictures[2]


def test_the_split_is_the_same_for_good() -> None:
    assert digit_bank("test").indices[:5].tolist() == [1442, 455, 584, 147, 160]


def test_pictures_belong_to_their_labels() -> None:
    for split in ("train", "val", "test"):
        bank = digit_bank(split)
        assert bank.images.shape == (len(bank.labels), 12, 12)
        assert bank.images.min() >= 0
        assert bank.images.max() <= 1
    # The nearest training digit has the same label for nearly all test digits.
    train, test = digit_bank("train"), digit_bank("test")
    distances = ((test.images[:, None] - train.images[None]) ** 2).sum((2, 3))
    assert (train.labels[distances.argmin(1)] == test.labels).mean() > 0.95
