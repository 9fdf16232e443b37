"""Next-token loss for sequences that may contain independent turns after a shared prefix.

The first token of a turn follows the prefix, not the turn that happens to come before it in the sequence.

Shapes: B sequences, T tokens, S supervised tokens of the batch, C tokens of a chunk, D width, Vocab or V entries of the
vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn

from llava_mini.batch import IGNORE


def predictors(turn_ids_BT: Tensor) -> Tensor:
    """Index of the entry whose logits predict each token: the one before it in its own turn or in the shared prefix.

    Example:
        turn        0  0  1  1  2  2  2
        predictor  -1  0  1  2  1  4  5

    Args:
        turn_ids_BT: Turn of every token, [B, T] int64; 0 for the shared prefix (and for padding), i for the i-th turn.

    Returns:
        Indices, [B, T] int64; -1 for a token that nothing predicts.
    """
    length = turn_ids_BT.shape[1]
    before_BT = torch.arange(-1, length - 1, device=turn_ids_BT.device).expand_as(turn_ids_BT)
    previous_BT = torch.nn.functional.pad(turn_ids_BT, (1, 0))[:, :length]
    starts_BT = (turn_ids_BT > 0) & (turn_ids_BT != previous_BT)
    prefix_end_B1 = starts_BT.long().argmax(1, keepdim=True) - 1
    return torch.where(starts_BT, prefix_end_B1, before_BT)


def next_token_loss(
    logits_BTV: Tensor, labels_BT: Tensor, turn_ids_BT: Tensor | None, num_items: Tensor | int | None = None
) -> Tensor:
    """Mean cross-entropy over all supervised tokens, or their sum divided by `num_items`.

    Without supervised tokens the loss is 0 and still a function of the logits. So a batch of unusable samples has a
    gradient (of zeros) like any other, as accumulation and several ranks need it.

    Args:
        logits_BTV: Logits, [B, T, Vocab].
        labels_BT: Token ids to predict, [B, T] int64; -100 is not supervised.
        turn_ids_BT: Turn of every token, [B, T] int64, or None.
        num_items: Number of supervised tokens of all batches whose gradients are summed; None: that of this batch.

    Raises:
        ValueError: when the logits are those of some positions only.
    """
    logits_SV, targets_S = supervised(logits_BTV, labels_BT, turn_ids_BT)
    loss = nn.functional.cross_entropy(logits_SV.float(), targets_S, reduction="sum")
    return loss / _divisor(num_items, targets_S)


def next_token_loss_of_hidden(
    hidden_BTD: Tensor,
    head: nn.Module,
    labels_BT: Tensor,
    turn_ids_BT: Tensor | None,
    chunk: int | None,
    num_items: Tensor | int | None = None,
) -> Tensor:
    """Return `next_token_loss` of `head(hidden)`, without computing the logits of tokens that are not supervised.

    Args:
        hidden_BTD: Last hidden states of the decoder, [B, T, D].
        head: Head of the language model, D -> Vocab.
        labels_BT: Token ids to predict, [B, T] int64; -100 is not supervised.
        turn_ids_BT: Turn of every token, [B, T] int64, or None.
        chunk: Number of tokens whose logits are in memory at once; None: all supervised tokens.
        num_items: Number of supervised tokens of all batches whose gradients are summed; None: that of this batch.
    """
    hidden_SD, targets_S = supervised(hidden_BTD, labels_BT, turn_ids_BT)
    if chunk is None:
        loss = nn.functional.cross_entropy(head(hidden_SD).float(), targets_S, reduction="sum")
    else:
        loss = linear_cross_entropy(hidden_SD, head, targets_S, chunk)
    return loss / _divisor(num_items, targets_S)


def supervised(logits_BTV: Tensor, labels_BT: Tensor, turn_ids_BT: Tensor | None) -> tuple[Tensor, Tensor]:
    """Select the logits and labels of all supervised tokens.

    Args:
        logits_BTV: Logits, [B, T, Vocab]; or hidden states, [B, T, D], of which the predicting ones are selected alike.
        labels_BT: Token ids to predict, [B, T] int64; -100 is not supervised.
        turn_ids_BT: Turn of every token, [B, T] int64, or None.

    Returns:
        Logits [S, Vocab] (or hidden states [S, D]) and labels [S].

    Raises:
        ValueError: when the logits are those of some positions only.
    """
    if logits_BTV.shape[:2] != labels_BT.shape:
        raise ValueError(
            f"labels of shape {tuple(labels_BT.shape)} for logits at {tuple(logits_BTV.shape[:2])} positions"
        )
    supervised_BT, predictor_BT = _supervised(labels_BT, turn_ids_BT)
    row_S, column_S = supervised_BT.nonzero(as_tuple=True)
    return logits_BTV[row_S, predictor_BT[row_S, column_S]], labels_BT[row_S, column_S]


def num_supervised(labels_BT: Tensor, turn_ids_BT: Tensor | None) -> int:
    """Number S of tokens over which the loss is a mean; a label that no token predicts is not counted.

    Args:
        labels_BT: Token ids to predict, [B, T] int64; -100 is not supervised.
        turn_ids_BT: Turn of every token, [B, T] int64, or None.
    """
    return int(_supervised(labels_BT, turn_ids_BT)[0].sum())


def _supervised(labels_BT: Tensor, turn_ids_BT: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return which tokens are supervised, [B, T] bool, and the index of the entry that predicts each, [B, T]."""
    predictor_BT = predictors(torch.zeros_like(labels_BT) if turn_ids_BT is None else turn_ids_BT)
    return (labels_BT != IGNORE) & (predictor_BT >= 0), predictor_BT


def _divisor(num_items: Tensor | int | None, targets_S: Tensor) -> Tensor | int:
    """Divisor of a sum of losses; never 0, because the loss of no token is 0."""
    if num_items is None or not len(targets_S):
        return max(len(targets_S), 1)
    return torch.as_tensor(num_items, device=targets_S.device)


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
