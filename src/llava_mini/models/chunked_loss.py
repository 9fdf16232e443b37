"""Cross-entropy through a linear head, one chunk of tokens at a time: the logits of all tokens never exist together.

Shapes: S tokens, C tokens of a chunk, D width, V entries of the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def linear_cross_entropy(hidden_SD: Tensor, head: nn.Module, targets_S: Tensor, chunk: int) -> Tensor:
    """Return the sum over tokens of the cross-entropy of `head(hidden)`, computed as under autocast where it is on.

    Args:
        hidden_SD: Hidden states, [S, D]; S may be 0, then the loss is 0 and has a gradient of zeros.
        head: Linear layer D -> V, trained or frozen, or tied to the embedding.
        targets_S: Token ids to predict, [S] int64.
        chunk: Number C of tokens whose logits are in memory at once.

    Returns:
        Scalar, float32.

    Raises:
        ValueError: for a head that is more than a linear layer: its weight alone does not define what it computes.
    """
    if type(head) is not nn.Linear:
        raise ValueError(f"the loss in chunks reads the head's weight; a {type(head).__name__} is no plain nn.Linear")
    device = hidden_SD.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.weight.dtype
    loss: Tensor = _LinearCrossEntropy.apply(hidden_SD, head.weight, head.bias, targets_S, chunk, dtype)
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss whose forward pass stores only the loss; the backward pass computes the logits of each chunk again.

    Gradients could be computed in the forward pass. That would save one of four products of the head (below 1 % of a
    step of a 7B model: the head is 2 % of its weights, and only supervised tokens go through it). The peak memory would
    be the same: the loss ends the forward pass and begins the backward pass, and all activations are in memory at both.
    But the gradients would be computed before the gradient scaler's factor is known. In float16 they would underflow,
    or overflow where no scaler can adapt. Here they are scaled before they are rounded, as in the plain loss.
    torch.utils.checkpoint over chunks would compute as much and need more memory: here softmax, subtraction and scaling
    are done in one tensor.

    The weight's gradient is summed over chunks in float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_SD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_S: Tensor,
        chunk: int,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(hidden_SD, weight_VD, bias_V, targets_S)
        ctx.chunk, ctx.dtype = chunk, dtype
        weight_VD, bias_V = _cast(weight_VD, bias_V, dtype)
        loss = hidden_SD.new_zeros((), dtype=torch.float32)
        for hidden_CD, targets_C in zip(hidden_SD.split(chunk), targets_S.split(chunk), strict=True):
            loss += _loss(nn.functional.linear(hidden_CD.to(dtype), weight_VD, bias_V), targets_C)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_SD, weight_VD, bias_V, targets_S = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_SD = torch.empty_like(hidden_SD) if needs_hidden else None
        grad_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_weight else None
        grad_V = torch.zeros_like(bias_V, dtype=torch.float32) if needs_bias else None
        weight_VD, bias_V = _cast(weight_VD, bias_V, ctx.dtype)
        for start in range(0, len(targets_S), ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            hidden_CD, targets_C = hidden_SD[rows].to(ctx.dtype), targets_S[rows]
            error_CV = _error(nn.functional.linear(hidden_CD, weight_VD, bias_V), targets_C, grads[0])
            if grad_SD is not None:
                grad_SD[rows] = error_CV @ weight_VD
            if grad_VD is not None:
                grad_VD += error_CV.T @ hidden_CD
            if grad_V is not None:
                grad_V += error_CV.sum(0, dtype=torch.float32)
            del error_CV  # otherwise it would be in memory together with the next chunk's
        return grad_SD, grad_VD, grad_V, None, None, None


def _loss(logits_CV: Tensor, targets_C: Tensor) -> Tensor:
    """Return the sum of the cross-entropies, in float32."""
    return -torch.log_softmax(logits_CV, dim=-1, dtype=torch.float32).gather(1, targets_C[:, None]).sum()


def _error(logits_CV: Tensor, targets_C: Tensor, grad: Tensor) -> Tensor:
    """Gradient of `grad` times `_loss` for the logits: softmax minus 1 at the target, rounded to their type last."""
    error_CV = torch.softmax(logits_CV, dim=-1, dtype=torch.float32)
    error_CV[torch.arange(len(targets_C), device=targets_C.device), targets_C] -= 1
    return error_CV.mul_(grad).to(logits_CV.dtype)


def _cast(weight_VD: Tensor, bias_V: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    return weight_VD.to(dtype), None if bias_V is None else bias_V.to(dtype)
