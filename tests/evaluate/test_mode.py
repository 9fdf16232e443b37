"""Modes are those of before, part by part, also after an error."""

import pytest
from torch import nn

from llava_mini.evaluate.accuracy import evaluation_mode


def test_every_module_gets_its_own_mode_back():
    inner = nn.Linear(1, 1)
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), inner).eval())
    inner.train()
    modes = [module.training for module in model.modules()]
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(KeyError), evaluation_mode(model):
        raise KeyError
    assert [module.training for module in model.modules()] == modes
