"""Inputs that do not fit together are refused with both numbers in the message, never mispaired in silence."""

from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


@pytest.fixture
def batch(model, make_sample, collate) -> dict[str, Any]:
    """An image and a two-frame video: 4 and 8 placeholders."""
    return collate(model, [make_sample(1), make_sample(2, frames=2)])


def test_frames_without_their_numbers(model, batch) -> None:
    del batch["num_frames"]
    with pytest.raises(ValueError, match="num_frames is needed"):
        model(**batch)


def test_more_frames_than_counted(model, batch) -> None:
    batch["num_frames"] = torch.tensor([1, 1])
    with pytest.raises(ValueError, match="2 samples and 2 frames.*2 samples and 3 frames"):
        model(**batch)


def test_counts_for_another_batch(model, batch) -> None:
    batch["num_frames"] = torch.tensor([1, 1, 1])
    with pytest.raises(ValueError, match="3 samples and 3 frames.*2 samples and 3 frames"):
        model(**batch)


def test_too_many_placeholders(model, batch) -> None:
    batch["input_ids"][0, 0] = model.config.image_token_id
    with pytest.raises(ValueError, match="5 .*4"):
        model(**batch)


def test_too_few_placeholders(model, batch) -> None:
    batch["input_ids"][batch["input_ids"] == model.config.image_token_id] = 5
    with pytest.raises(ValueError, match="0 .*4"):
        model(**batch)


def test_frames_of_another_sample_do_not_fill_in(model, batch) -> None:
    """The sums agree, but the image would get two frames' worth of the video's tokens."""
    batch["num_frames"] = torch.tensor([2, 1])
    with pytest.raises(ValueError, match="sample 0.*4 .*8"):
        model(**batch)


def test_placeholders_without_an_image(model, batch) -> None:
    for name in ("pixel_values", "num_frames"):
        del batch[name]
    with pytest.raises(ValueError, match="12 image placeholders and no image"):
        model(**batch)


def test_frames_counted_but_not_given(make_model, make_sample, collate, compressors) -> None:
    """Without a placeholder (`zero`) nothing else would tell that the image was forgotten."""
    model = make_model(compressor=compressors["zero"])
    batch = collate(model, [make_sample(1), make_sample(2, frames=2)])
    del batch["pixel_values"]
    with pytest.raises(ValueError, match="num_frames.*3 frames"):
        model(**batch)


def test_pixels_and_features_at_once(model, batch) -> None:
    with pytest.raises(ValueError, match="pixel_values.*image_features"):
        model(**batch, image_features=model.encode(batch["pixel_values"]))


@pytest.mark.parametrize("shape", [(3, 3, 24, 24), (1, 3, 1, 3, 24, 24)])
def test_pixels_of_another_shape(model, batch, shape: tuple[int, ...]) -> None:
    batch["pixel_values"] = torch.zeros(shape)
    with pytest.raises(ValueError, match=f"{len(shape)}|frames, views, 3, height, width"):
        model(**batch)


@pytest.mark.parametrize("shape", [(3, 16, 32), (3, 1, 15, 32), (3, 1, 16, 31)])
def test_features_of_another_shape(model, batch, shape: tuple[int, ...]) -> None:
    del batch["pixel_values"]
    with pytest.raises(ValueError, match=r"image_features has shape \(3, .*\[frames, views, 16, 32\]"):
        model(**batch, image_features=torch.zeros(shape))


def test_images_of_another_size(model, batch) -> None:
    batch["pixel_values"] = torch.zeros(3, 1, 3, 30, 30)
    with pytest.raises(ValueError, match="30.*24"):
        model(**batch)


def test_a_number_of_views_that_no_frame_has(model, batch) -> None:
    batch["pixel_values"] = torch.zeros(3, 3, 3, 24, 24)
    with pytest.raises(ValueError, match="3 views, expected 1 or 5"):
        model(**batch)
    with pytest.raises(ValueError, match="2 views, expected 1 or 5"):
        model(**batch, num_views=torch.tensor([1, 2, 1]))


def test_more_views_than_there_are(model, batch) -> None:
    with pytest.raises(ValueError, match="5 views.*1"):
        model(**batch, num_views=torch.tensor([1, 5, 1]))


def test_views_of_another_number_of_frames(model, batch) -> None:
    batch["pixel_values"] = torch.zeros(3, 5, 3, 24, 24)
    with pytest.raises(ValueError, match="num_views.*2.*3"):
        model(**batch, num_views=torch.tensor([1, 5]))


def test_turns_in_cached_generation(model, make_sample, collate) -> None:
    batch = collate(model, [make_sample(1)], answers=False)
    with pytest.raises(ValueError, match="turn_ids"):
        model.generate(**batch, turn_ids=torch.zeros_like(batch["input_ids"]), max_new_tokens=2, do_sample=False)


def test_attention_that_cannot_take_the_masks(make_model, make_sample, collate) -> None:
    for fusion_layers in (0, 2):  # the language model's mask of turns, and pre-fusion's
        model = make_model(num_fusion_layers=fusion_layers)
        for config in (model.config.text_config, model.prefusion.config):
            config._attn_implementation = "flash_attention_2"
        batch = collate(model, [make_sample(1)])
        with pytest.raises(ValueError, match="flash_attention_2.*'sdpa' or 'eager'"):
            model(**batch, turn_ids=torch.zeros_like(batch["input_ids"]))
