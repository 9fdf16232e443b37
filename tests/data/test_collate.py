"""A batch is its samples, padded on the right, and its frames in the samples' order."""

import torch

from llava_mini.data.collate import collate
from llava_mini.data.labels import TokenizedSample
from llava_mini.data.samples import Sample


def tokens(length: int, turns: bool = True) -> TokenizedSample:
    ids = torch.arange(1, length + 1)
    return TokenizedSample(ids, torch.where(ids > 2, ids, -100), (ids > 1).long() if turns else None)


def test_texts_are_padded_on_the_right() -> None:
    batch = collate([Sample("a", tokens(3), ["color"]), Sample("b", tokens(5), [])], pad_token_id=9)
    assert batch.input_ids.tolist() == [[1, 2, 3, 9, 9], [1, 2, 3, 4, 5]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert batch.labels.tolist() == [[-100, -100, 3, -100, -100], [-100, -100, 3, 4, 5]]
    assert batch.turn_ids is not None
    assert batch.turn_ids.tolist() == [[0, 1, 1, 0, 0], [0, 1, 1, 1, 1]]
    assert (batch.keys, batch.kinds, batch.skipped) == (["a", "b"], [["color"], []], [])
    assert batch.num_frames.tolist() == [0, 0]
    assert batch.pixel_values is None
    assert batch.image_features is None


def test_frames_of_all_samples_lie_one_after_another() -> None:
    pixels = torch.randn(3, 1, 3, 4, 4)
    samples = [
        Sample("a", tokens(3, turns=False), [], pixels=pixels[:1]),
        Sample("b", tokens(3, turns=False), []),
        Sample("c", tokens(3, turns=False), [], pixels=pixels[1:]),
    ]
    batch = collate(samples, 0, ["d: broken"])
    assert batch.num_frames.tolist() == [1, 0, 2]
    assert batch.pixel_values is not None
    assert torch.equal(batch.pixel_values, pixels)
    assert batch.turn_ids is None
    assert batch.skipped == ["d: broken"]


def test_features_stand_for_pixels() -> None:
    features = torch.randn(2, 5, 7, 8)
    samples = [Sample(key, tokens(2), [], features=each[None]) for key, each in zip("ab", features, strict=True)]
    batch = collate(samples, 0)
    assert batch.image_features is not None
    assert torch.equal(batch.image_features, features)
    assert batch.num_frames.tolist() == [1, 1]
    assert batch.pixel_values is None


def test_a_batch_of_which_nothing_is_left_has_no_rows() -> None:
    batch = collate([], 0, ["a: broken"])
    assert len(batch) == 0
    assert {name: tuple(value.shape) for name, value in batch.model_inputs().items()} == {
        "input_ids": (0, 0),
        "attention_mask": (0, 0),
        "labels": (0, 0),
        "num_frames": (0,),
    }
