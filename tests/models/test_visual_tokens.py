"""Frames of several kinds in one tensor, and compressed tokens in their placeholders."""

import torch

from llava_mini.models.visual_tokens import VisualTokens, merge_groups, splice


def test_merged_rows_keep_their_place_and_their_gradients() -> None:
    short, long = torch.randn(2, 1, 3, requires_grad=True), torch.randn(1, 4, 3, requires_grad=True)
    chosen = torch.tensor([True, False, True])
    merged, mask = merge_groups([(chosen, short), (~chosen, long)])
    assert merged.shape == (3, 4, 3) and mask.sum(1).tolist() == [1, 4, 1]
    assert torch.equal(merged[[0, 2], :1], short) and torch.equal(merged[1:2], long)
    merged[mask].sum().backward()
    assert torch.equal(short.grad, torch.ones_like(short)) and torch.equal(long.grad, torch.ones_like(long))


def test_groups_without_a_token() -> None:
    merged, mask = merge_groups([(torch.tensor([True, True]), torch.zeros(2, 0, 3))])
    assert merged.shape == (2, 0, 3) and mask.shape == (2, 0)


def test_one_kind_is_all_real() -> None:
    visual = VisualTokens.of_one_kind(torch.zeros(2, 5, 3), torch.zeros(2, 1, 3))
    assert visual.patch_mask_FP.all() and visual.patch_mask_FP.shape == (2, 5)
    assert visual.compressed_mask_FK.all() and visual.compressed_mask_FK.shape == (2, 1)


def test_several_kinds() -> None:
    chosen = torch.tensor([True, False])
    visual = VisualTokens.of_kinds(
        [(chosen, torch.ones(1, 2, 3), torch.ones(1, 4, 3)), (~chosen, torch.ones(1, 5, 3), torch.ones(1, 1, 3))]
    )
    assert visual.patch_mask_FP.sum(1).tolist() == [2, 5] and visual.compressed_mask_FK.sum(1).tolist() == [4, 1]


def test_splice_worked_example() -> None:
    text = torch.zeros(2, 4, 1)
    placeholder = torch.tensor([[False, True, True, False], [False, False, True, True]])
    compressed = torch.tensor([[[1.0], [2.0], [9.0]], [[3.0], [4.0], [9.0]]])
    real = torch.tensor([[True, True, False]] * 2)
    assert splice(text, placeholder, compressed[real])[..., 0].tolist() == [[0, 1, 2, 0], [0, 0, 3, 4]]
