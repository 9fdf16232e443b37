"""Which entry predicts which token, with and without turns, against plain next-token prediction turn by turn."""

import pytest
import torch
from torch import nn

from llava_mini.models.loss import next_token_loss, num_supervised, predictors, supervised


def test_worked_example() -> None:
    assert predictors(torch.tensor([[0, 0, 1, 1, 2, 2, 2]])).tolist() == [[-1, 0, 1, 2, 1, 4, 5]]


def test_padding_on_either_side() -> None:
    turns = torch.tensor([[0, 0, 1, 2, 2, 0, 0], [0, 0, 0, 0, 1, 1, 2]])
    assert predictors(turns).tolist() == [[-1, 0, 1, 1, 3, 4, 5], [-1, 0, 1, 2, 3, 4, 3]]


def test_without_turns_it_is_the_entry_before() -> None:
    assert predictors(torch.zeros(2, 4).long()).tolist() == [[-1, 0, 1, 2]] * 2


def test_nothing_predicts_a_turn_without_a_prefix() -> None:
    assert predictors(torch.tensor([[1, 1, 2, 2]])).tolist() == [[-1, 0, -1, 2]]


def test_pairs_are_those_of_every_turn_alone() -> None:
    torch.manual_seed(0)
    turns = torch.tensor([[0, 0, 1, 1, 2, 2, 2, 0]])
    labels = torch.tensor([[-100, -100, 5, 6, 7, -100, 8, -100]])
    logits = torch.randn(1, 8, 9)
    got_logits, got_labels = supervised(logits, labels, turns)
    assert got_labels.tolist() == [5, 6, 7, 8]
    assert torch.equal(got_logits, logits[0, [1, 2, 1, 5]])


def test_one_conversation_is_next_token_prediction() -> None:
    torch.manual_seed(0)
    labels = torch.randint(0, 9, (3, 6)).masked_fill(torch.rand(3, 6) < 0.4, -100)
    logits = torch.randn(3, 6, 9)
    expected = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(nn.functional.cross_entropy(*supervised(logits, labels, None)), expected)


def test_tokens_are_counted_that_something_predicts() -> None:
    turns = torch.tensor([[0, 0, 1, 1, 2, 2, 2, 0], [1, 1, 2, 2, 2, 2, 2, 2]])
    labels = torch.tensor([[3, -100, 5, 6, 7, -100, 8, -100], [3, 4, 5, 6, -100, -100, -100, -100]])
    for turn_ids in (None, turns):
        expected = len(supervised(torch.zeros(2, 8, 9), labels, turn_ids)[1])
        assert num_supervised(labels, turn_ids) == expected == (7 if turn_ids is None else 6)
    assert num_supervised(torch.full((2, 3), -100), None) == 0


@pytest.mark.parametrize("items", [10, torch.tensor(10)])
def test_the_sum_of_losses_is_divided_by_what_is_reported(items: int | torch.Tensor) -> None:
    torch.manual_seed(0)
    labels = torch.randint(0, 9, (2, 4)).masked_fill(torch.tensor([[True, False, False, True]]), -100)
    logits = torch.randn(2, 4, 9)
    total = nn.functional.cross_entropy(*supervised(logits, labels, None), reduction="sum")
    torch.testing.assert_close(next_token_loss(logits, labels, None, items), total / 10)
    nothing = torch.full((2, 4), -100)
    for none in (items, items * 0):  # a whole step without a supervised token
        assert next_token_loss(logits, nothing, None, none).item() == 0.0


def test_the_loss_is_the_mean_over_supervised_tokens() -> None:
    torch.manual_seed(0)
    labels = torch.randint(0, 9, (3, 6)).masked_fill(torch.rand(3, 6) < 0.4, -100)
    logits = torch.randn(3, 6, 9)
    expected = nn.functional.cross_entropy(*supervised(logits, labels, None))
    torch.testing.assert_close(next_token_loss(logits, labels, None), expected)


def test_without_a_supervised_token_the_loss_is_zero_and_has_a_gradient_of_zeros() -> None:
    logits = torch.randn(2, 3, 9, requires_grad=True)
    loss = next_token_loss(logits, torch.full((2, 3), -100), torch.tensor([[0, 1, 1], [0, 0, 0]]))
    assert loss.item() == 0.0
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_labels_for_other_positions() -> None:
    with pytest.raises(ValueError, match=r"labels of shape \(1, 4\) for logits at \(1, 2\)"):
        supervised(torch.zeros(1, 2, 9), torch.zeros(1, 4).long(), None)
