"""Next-token loss for sequences that may contain independent turns after a shared prefix.

The first token of a turn follows the prefix, not the turn that happens to come before it in the sequence.

Shapes: B sequences, T tokens, S supervised tokens of the batch, D width, Vocab entries of the vocabulary.
"""

import torch
from torch import Tensor, nn

from llava_mini.models.chunked_loss import linear_cross_entropy


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
    return (labels_BT != -100) & (predictor_BT >= 0), predictor_BT


def _divisor(num_items: Tensor | int | None, targets_S: Tensor) -> Tensor | int:
    """Divisor of a sum of losses; never 0, because the loss of no token is 0."""
    if num_items is None or not len(targets_S):
        return max(len(targets_S), 1)
    return torch.as_tensor(num_items, device=targets_S.device)
