"""Positions and masks against the worked examples and against a slow restatement of the rule, entry by entry."""

import pytest
import torch
from torch import Tensor

from llava_mini.models.attention import mask_for, packed_mask, packed_positions

VISIBLE = torch.tensor([[1, 1, 1, 0, 1, 1, 0, 1, 0], [0, 0, 1, 1, 1, 1, 1, 1, 1]]).bool()
TURNS = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 3, 0], [0, 0, 0, 1, 1, 2, 2, 2, 3]])


def slow_positions(visible: Tensor, turns: Tensor) -> list[list[int | None]]:
    """Visible entries of the same turn or of the shared prefix that stand before; None where hidden."""
    rows: list[list[int | None]] = []
    for see, turn in zip(visible.tolist(), turns.tolist(), strict=True):
        before = [sum(see[j] and turn[j] in (0, turn[i]) for j in range(i)) for i in range(len(see))]
        rows.append([count if see[i] else None for i, count in enumerate(before)])
    return rows


def allowed(visible: Tensor, turns: Tensor, i: int, j: int) -> bool:
    return i == j or bool(j < i and visible[j] and turns[j] in (0, turns[i]))


def test_positions_of_the_worked_example() -> None:
    visible = torch.tensor([[1, 1, 1, 1, 1, 1, 0]]).bool()
    turns = torch.tensor([[0, 0, 1, 1, 2, 2, 0]])
    assert packed_positions(visible, turns)[0].tolist() == [0, 1, 2, 3, 2, 3, 5]


@pytest.mark.parametrize("turns", [None, TURNS], ids=["one conversation", "turns"])
def test_positions_count_visible_entries_only(turns: Tensor | None) -> None:
    positions = packed_positions(VISIBLE, turns)
    expected = slow_positions(VISIBLE, torch.zeros_like(TURNS) if turns is None else turns)
    for row, wanted in zip(positions.tolist(), expected, strict=True):
        assert [got if want is not None else None for got, want in zip(row, wanted, strict=True)] == wanted
    assert positions.min() >= 0 and positions.max() < VISIBLE.shape[1]  # hidden entries too stay in range


def test_positions_where_nothing_is_visible() -> None:
    assert packed_positions(torch.zeros(2, 3).bool()).tolist() == [[0, 0, 0]] * 2
    assert packed_positions(torch.zeros(1, 3).bool(), torch.tensor([[0, 1, 2]])).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("turns", [None, TURNS], ids=["one conversation", "turns"])
def test_mask_is_causal_visible_and_within_the_turn(turns: Tensor | None) -> None:
    mask = packed_mask(VISIBLE, turns, torch.float32)
    shared = torch.zeros_like(TURNS) if turns is None else turns
    for b in range(len(VISIBLE)):
        for i in range(VISIBLE.shape[1]):
            for j in range(VISIBLE.shape[1]):
                assert bool(mask[b, 0, i, j]) == allowed(VISIBLE[b], shared[b], i, j), (b, i, j)


def test_mask_of_the_worked_example() -> None:
    mask = packed_mask(torch.ones(1, 4).bool(), torch.tensor([[0, 0, 1, 2]]), torch.float32)
    assert mask[0, 0].long().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_additive_mask_says_the_same_and_leaves_no_row_without_a_number(dtype: torch.dtype) -> None:
    boolean = mask_for("sdpa", VISIBLE, TURNS, dtype)
    additive = mask_for("eager", VISIBLE, TURNS, dtype)
    assert boolean.dtype == torch.bool and additive.dtype == dtype
    assert torch.equal(boolean, additive == 0)
    assert torch.isfinite(additive).all()
    weights = (additive + torch.zeros_like(additive)).softmax(-1)
    assert torch.equal(weights > 0, boolean)


def test_unknown_attention_implementation() -> None:
    with pytest.raises(ValueError, match="'flash_attention_2'.*'sdpa' or 'eager'"):
        mask_for("flash_attention_2", VISIBLE, None, torch.float32)
