"""The loss in chunks against the plain one: value and gradients, in every precision, and the memory of its logits.

Tolerances: float32 differs by the order of sums; half precision by a rounding of its 8 (11) bits, logits are about one.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from llava_mini.models.loss import linear_cross_entropy

TOKENS, WIDTH, VOCAB = 23, 16, 41


def head_and_hidden(bias: bool = False, tokens: int = TOKENS) -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, VOCAB, bias=bias)
    return head, torch.randn(tokens, WIDTH, requires_grad=True), torch.randint(0, VOCAB, (tokens,))


def plain(hidden_SD: Tensor, head: nn.Linear, targets_S: Tensor) -> Tensor:
    return nn.functional.cross_entropy(head(hidden_SD).float(), targets_S, reduction="sum")


def gradients(loss: Tensor, *inputs: Tensor, scale: float = 1.0) -> list[Tensor]:
    return list(torch.autograd.grad(loss * scale, inputs))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, TOKENS, 1000])
def test_it_is_the_plain_loss_with_its_gradients(chunk: int, bias: bool) -> None:
    head, hidden, targets = head_and_hidden(bias)
    inputs = [hidden, *head.parameters()]
    expected, got = plain(hidden, head, targets), linear_cross_entropy(hidden, head, targets, chunk)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)
    for ours, theirs in zip(gradients(got, *inputs), gradients(expected, *inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_frozen_head_has_no_gradient_and_passes_one_on() -> None:
    head, hidden, targets = head_and_hidden()
    (expected,) = gradients(plain(hidden, head, targets), hidden)
    head.requires_grad_(False)
    linear_cross_entropy(hidden, head, targets, 4).backward()
    assert head.weight.grad is None
    torch.testing.assert_close(hidden.grad, expected)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_under_autocast_it_computes_in_half_and_gives_gradients_in_full_precision(
    dtype: torch.dtype, rounding: float
) -> None:
    head, hidden, targets = head_and_hidden(bias=True)
    inputs = [hidden, *head.parameters()]
    with torch.autocast("cpu", dtype=dtype):
        expected, got = plain(hidden, head, targets), linear_cross_entropy(hidden, head, targets, 5)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=rounding, atol=0)
    for ours, theirs in zip(gradients(got, *inputs), gradients(expected, *inputs), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=4 * rounding, atol=4 * rounding)
    exact = linear_cross_entropy(hidden, head, targets, 5)
    assert not torch.equal(exact, got)  # or nothing was computed in half precision


def test_gradients_are_scaled_before_they_are_rounded_to_half_precision() -> None:
    """Of a mean over 10^8 tokens float16 can hold no gradient, but one that a GradScaler has scaled it can."""
    head, hidden, targets = head_and_hidden()
    inputs, tokens, scale = [hidden, head.weight], 1e8, 2.0**16
    exact = gradients(plain(hidden, head, targets) / tokens, *inputs)
    with torch.autocast("cpu", dtype=torch.float16):
        loss = linear_cross_entropy(hidden, head, targets, 5) / tokens
        unscaled = linear_cross_entropy(hidden, head, targets, 5) / tokens
    assert not any(gradient.any() for gradient in gradients(unscaled, *inputs))
    scaled = gradients(loss, *inputs, scale=scale)
    for ours, theirs in zip(scaled, exact, strict=True):
        torch.testing.assert_close(ours / scale, theirs, rtol=0.02, atol=float(theirs.abs().max()) / 500)


def test_half_precision_weights_get_gradients_of_their_type() -> None:
    head, hidden, targets = head_and_hidden()
    head, hidden = head.bfloat16(), hidden.detach().bfloat16().requires_grad_()
    got, expected = linear_cross_entropy(hidden, head, targets, 4), plain(hidden, head, targets)
    inputs = [hidden, head.weight]
    for ours, theirs in zip(gradients(got, *inputs), gradients(expected, *inputs), strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours, theirs, rtol=2**-6, atol=2**-6)


def test_without_a_token_it_is_zero_and_has_a_gradient_of_zeros() -> None:
    head, hidden, targets = head_and_hidden(bias=True, tokens=0)
    loss = linear_cross_entropy(hidden, head, targets, 4)
    assert loss.item() == 0.0
    loss.backward()
    assert hidden.grad is not None and hidden.grad.shape == (0, WIDTH)
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_it_can_be_taken_without_gradients() -> None:
    head, hidden, targets = head_and_hidden()
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, head, targets, 4)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, plain(hidden, head, targets).detach())


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that any operation gave back."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return made


def test_no_more_logits_than_a_chunks_are_ever_in_memory() -> None:
    head, hidden, targets = head_and_hidden(tokens=400)
    head.requires_grad_(False)
    sizes = []
    for loss_of in (plain, lambda hidden, head, targets: linear_cross_entropy(hidden, head, targets, 50)):
        with Largest() as largest:
            loss_of(hidden, head, targets).backward()
        sizes.append(largest.numel)
    assert sizes == [400 * VOCAB, max(50 * VOCAB, hidden.numel())]


def test_a_head_that_is_more_than_its_weight_is_refused() -> None:
    head, hidden, targets = head_and_hidden()
    with pytest.raises(ValueError, match="Sequential is no plain nn.Linear"):
        linear_cross_entropy(hidden, nn.Sequential(head), targets, 4)
