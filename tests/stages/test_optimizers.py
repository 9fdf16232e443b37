"""Optimizers in 8 bits take the place of AdamW: near to it, with a quarter of its state, refused where they fail."""

from typing import Any

import torch
from tests.refusals import refuses
from torch import nn

from llava_mini.stages.optimizers import build_optimizer


def steps(name: str, count: int = 20, **options: bool) -> tuple[nn.Linear, Any]:
    """A layer of 64 x 128 weights that learns a fixed map."""
    torch.manual_seed(0)
    layer, x, target = nn.Linear(64, 128), torch.randn(32, 64), torch.randn(32, 128)
    groups = [
        {"params": [layer.weight], "lr": 1e-2, "weight_decay": 0.1},
        {"params": [layer.bias], "lr": 1e-2, "weight_decay": 0.0},
    ]
    optimizer = build_optimizer(name, groups, (0.9, 0.98), torch.device("cpu"), **options)
    for _ in range(count):
        optimizer.zero_grad()
        (layer(x) - target).square().mean().backward()
        optimizer.step()
    return layer, optimizer


def test_8_bits_come_near_to_adamw_with_a_quarter_of_its_state():
    (plain, adamw), (packed, in_8_bits) = steps("adamw"), steps("adamw_8bit")
    moved = (plain.weight - steps("adamw", 0)[0].weight).abs().mean()
    assert (packed.weight - plain.weight).abs().mean() < 0.1 * moved
    state, state_8 = adamw.state[plain.weight], in_8_bits.state[packed.weight]
    assert state["exp_avg"].dtype == torch.float32
    assert state_8["state1"].dtype == state_8["state2"].dtype == torch.uint8
    assert [group["weight_decay"] for group in in_8_bits.param_groups] == [0.1, 0.0]
    assert in_8_bits.param_groups[0]["betas"] == (0.9, 0.98)


def test_a_fused_step_is_the_same_up_to_rounding():
    (plain, _), (fused, optimizer) = steps("adamw"), steps("adamw", fused=True)
    assert [group["fused"] for group in optimizer.param_groups] == [True, True]
    for one, other in zip(plain.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_paged_state_needs_a_gpu():
    with refuses("memory.optimizer", "paged_adamw_8bit", "adamw, adamw_8bit"):
        steps("paged_adamw_8bit")
