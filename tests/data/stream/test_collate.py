"""A batch is its samples, padded on the right, and its frames in the samples' order; a placeholder is a row as well."""

from dataclasses import replace

import pytest
import torch

from llava_mini.batch import BadSample
from llava_mini.data.stream.samples import Sample, collate, placeholder
from llava_mini.data.text.labels import TokenizedSample


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


def test_text_images_and_videos_are_mixed_and_all_frames_lie_one_after_another() -> None:
    pixels = torch.arange(6 * 3 * 16, dtype=torch.uint8).view(6, 1, 3, 4, 4)
    samples = [
        Sample("image", tokens(3, turns=False), [], pixels=pixels[:1]),
        Sample("text", tokens(3, turns=False), []),
        Sample("video", tokens(3, turns=False), [], pixels=pixels[1:5]),
        Sample("another image", tokens(3, turns=False), [], pixels=pixels[5:]),
    ]
    batch = collate(samples, 0, position=12)
    assert batch.num_frames.tolist() == [1, 0, 4, 1]
    assert batch.pixel_values is not None
    assert batch.pixel_values.dtype == torch.uint8
    assert torch.equal(batch.pixel_values, pixels)
    assert batch.turn_ids is None
    assert batch.position == 12


@pytest.mark.parametrize("kind", ["pixels", "features"])
def test_videos_beside_high_resolution_images_are_padded_with_views(kind: str) -> None:
    image, video, another = (
        torch.randint(1, 9, (frames, views, 3, 4, 4)) for frames, views in ((2, 5), (3, 1), (1, 5))
    )
    samples = [Sample("a", tokens(2), [], **{kind: frames}) for frames in (image, video, another)]
    samples[1:1] = [Sample("text", tokens(2), []), placeholder("bad", 0)]
    batch = collate(samples, 0)
    frames = batch.pixel_values if kind == "pixels" else batch.image_features
    assert frames is not None and frames.dtype == image.dtype
    assert batch.num_frames.tolist() == [2, 0, 0, 3, 1]
    assert batch.num_views is not None and batch.num_views.tolist() == [5, 5, 1, 1, 1, 5]
    assert torch.equal(frames[:2], image) and torch.equal(frames[5:], another)
    assert torch.equal(frames[2:5, :1], video) and not frames[2:5, 1:].any()
    for same in ([samples[0], samples[4]], [samples[3]], [samples[1]]):
        assert collate(same, 0).num_views is None, "all have as many"


def test_features_stand_for_pixels() -> None:
    features = torch.randn(3, 5, 7, 8)
    samples = [Sample("a", tokens(2), [], features=features[:1]), Sample("b", tokens(2), [], features=features[1:])]
    batch = collate(samples, 0)
    assert batch.image_features is not None
    assert torch.equal(batch.image_features, features)
    assert batch.num_frames.tolist() == [1, 2]
    assert batch.pixel_values is None


def test_a_bad_sample_is_a_row_of_one_token_without_label_or_frame() -> None:
    bad = BadSample("b", "shards/shard-000000.tar", "broken", 7)
    pixels = torch.zeros(1, 1, 3, 4, 4, dtype=torch.uint8)
    samples = [placeholder("b", 9), Sample("a", tokens(3), ["color"], pixels=pixels)]
    batch = collate(samples, 9, position=8, skipped=[bad])
    assert len(batch) == 2
    assert batch.input_ids.tolist() == [[9, 9, 9], [1, 2, 3]]
    assert batch.attention_mask.tolist() == [[1, 0, 0], [1, 1, 1]]
    assert batch.labels.tolist() == [[-100] * 3, [-100, -100, 3]]
    assert batch.turn_ids is not None
    assert batch.turn_ids.tolist() == [[0, 0, 0], [0, 1, 1]]
    assert batch.num_frames.tolist() == [0, 1]
    assert (batch.keys, batch.kinds, batch.skipped) == (["b", "a"], [[], ["color"]], [bad])


def test_a_batch_of_bad_samples_only_has_its_rows() -> None:
    batch = collate([placeholder("a", 0), placeholder("b", 0)], 0)
    assert {name: tuple(value.shape) for name, value in batch.model_inputs().items()} == {
        "input_ids": (2, 1),
        "attention_mask": (2, 1),
        "labels": (2, 1),
        "num_frames": (2,),
    }
    assert batch.num_supervised() == 0


def test_shortened_samples_are_counted() -> None:
    short = replace(tokens(3), truncated=True)
    batch = collate([Sample("a", tokens(3), []), Sample("b", short, []), Sample("c", short, [])], 0)
    assert batch.truncated == 2
