"""The checks by themselves: what passes, what the messages say; test_llava_mini_inputs.py has the model use them."""

import pytest
import torch

from llava_mini.models import inputs
from llava_mini.token_layout import TokenLayout


def test_what_fits_passes() -> None:
    views = torch.tensor([1, 5])
    inputs.check_pixels(torch.zeros(2, 5, 3, 4, 4), views)
    inputs.check_pixels(torch.zeros(0, 5, 3, 4, 4), views[:0])
    inputs.check_features(torch.zeros(2, 5, 16, 8), views, num_patches=16, width=8)
    assert inputs.check_frames(torch.tensor([0, 2]), frames=2, batch=2).tolist() == [0, 2]
    placeholders = torch.tensor([[False, False, False], [True, True, True]])
    inputs.check_placeholders(placeholders, torch.tensor([1, 5]), torch.tensor([0, 2]), TokenLayout(1, 2))
    inputs.check_no_frames(torch.zeros(2, 3).bool(), torch.tensor([0, 0]))
    inputs.check_no_frames(torch.zeros(2, 3).bool(), None)


def test_pixels_that_were_not_normalized_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pixel_values is torch\.uint8, expected normalized floating-point numbers"):
        inputs.check_pixels(torch.zeros(1, 1, 3, 4, 4, dtype=torch.uint8), None)


def test_the_first_sample_that_does_not_fit_is_named() -> None:
    placeholders = torch.tensor([[True, False], [False, False], [True, True]])
    with pytest.raises(ValueError, match="sample 1: input_ids has 0 image placeholders, its 1 frames make 1 tokens"):
        inputs.check_placeholders(placeholders, torch.ones(3).int(), torch.tensor([1, 1, 1]), TokenLayout(1, 1))


def test_instruction_is_text_that_is_no_answer() -> None:
    attention = torch.tensor([[0, 1, 1, 1, 1]])
    placeholder = torch.tensor([[False, True, False, False, False]])
    labels = torch.tensor([[-100, -100, -100, 7, 8]])
    assert inputs.instruction(attention, placeholder, None, None).tolist() == [[False, False, True, True, True]]
    assert inputs.instruction(attention, placeholder, labels, None).tolist() == [[False, False, True, False, False]]


def test_a_given_instruction_mask_rules_and_ends_with_the_prompt() -> None:
    attention = torch.tensor([[0, 1, 1, 1, 1]])
    placeholder = torch.tensor([[False, True, False, False, False]])
    labels = torch.tensor([[-100, -100, -100, 7, 8]])
    mask = torch.tensor([[1, 1, 1, 1]])  # one token has been generated since
    assert inputs.instruction(attention, placeholder, labels, mask).tolist() == [[False, False, True, True, False]]
