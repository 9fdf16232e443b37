"""The projector: LLaVA's two layers, any leading shape."""

import torch
from torch.nn import functional

from llava_mini.models.projector import Projector


def test_is_linear_gelu_linear() -> None:
    projector = Projector(vision_dim=8, text_dim=12)
    features = torch.randn(2, 5, 8)
    first = functional.linear(features, projector.linear_1.weight, projector.linear_1.bias)
    expected = functional.linear(functional.gelu(first), projector.linear_2.weight, projector.linear_2.bias)
    # the same operations in the same order, so no tolerance beyond the default is needed
    torch.testing.assert_close(projector(features), expected)
    assert projector(features).shape == (2, 5, 12)


def test_activation_by_name() -> None:
    projector = Projector(vision_dim=8, text_dim=12, activation="relu")
    features = torch.randn(3, 8)
    torch.testing.assert_close(projector(features), projector.linear_2(projector.linear_1(features).relu()))


def test_no_frame_at_all() -> None:
    assert Projector(vision_dim=8, text_dim=12)(torch.zeros(0, 4, 8)).shape == (0, 4, 12)
