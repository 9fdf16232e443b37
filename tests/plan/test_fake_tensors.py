"""Numbers are kept where a model looks at them, and nowhere else."""

import pytest
import torch

from llava_mini.plan.fake_tensors import FakeTensor, FakeTensors
from llava_mini.plan.ledger import Ledger


def test_whole_numbers_are_real_and_floats_hold_nothing() -> None:
    with FakeTensors(Ledger()):
        ids = torch.arange(6).reshape(2, 3)
        assert int(ids.max()) == 5
        values = torch.zeros(1_000_000, 1_000_000)
        assert isinstance(values, FakeTensor)
        assert not isinstance(ids, FakeTensor)
        assert values[ids].shape == (2, 3, 1_000_000)
        assert isinstance(ids.float(), FakeTensor)
        assert float(torch.tensor(0.5) + 1) == 1.5  # a scalar that was made from nothing


def test_masks_select_as_many_as_they_say() -> None:
    with FakeTensors(Ledger()):
        mask = torch.tensor([[True, False, True], [False, False, True]])
        values = torch.zeros(2, 3, 7)
        assert values[mask].shape == (3, 7)
        values[mask] = torch.ones(3, 7)


def test_views_share_memory_and_in_place_operators_give_back_what_they_got() -> None:
    ledger = Ledger()
    with FakeTensors(ledger):
        values = torch.zeros(4, 128)
        held = ledger.current
        row = values[1].view(2, 64)
        assert row.add_(1) is row
        assert ledger.current == held == 4 * 128 * 4
        del values
        assert ledger.current == held  # the view keeps it
        del row
        assert ledger.current == 0


def test_real_tensor_is_not_changed_by_one_without_numbers() -> None:
    with FakeTensors(Ledger()):
        count = torch.zeros(3, dtype=torch.long)
        with pytest.raises(NotImplementedError, match="a real tensor is changed"):
            count.copy_(torch.zeros(3))
