"""Next-token loss for sequences that may hold independent turns behind a shared prefix.

The first token of a turn follows the prefix, not the turn that happens to stand before it in the sequence.

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
        turn_ids_BT: [B, T] int64, 0 for the shared prefix (and for padding), i for the i-th turn.

    Returns:
        [B, T] int64; -1 for what nothing predicts.
    """
    length = turn_ids_BT.shape[1]
    before_BT = torch.arange(-1, length - 1, device=turn_ids_BT.device).expand_as(turn_ids_BT)
    previous_BT = torch.nn.functional.pad(turn_ids_BT, (1, 0))[:, :length]
    starts_BT = (turn_ids_BT > 0) & (turn_ids_BT != previous_BT)
    prefix_end_B1 = starts_BT.long().argmax(1, keepdim=True) - 1
    return torch.where(starts_BT, prefix_end_B1, before_BT)


def next_token_loss(logits_BTV: Tensor, labels_BT: Tensor, turn_ids_BT: Tensor | None) -> Tensor:
    """Mean cross-entropy over all tokens that are learnt.

    Where there is none it is 0 and still a function of the logits, so a batch of unusable samples has a gradient (of
    zeros) like any other, as accumulation and several ranks need it.

    Args:
        logits_BTV: [B, T, Vocab].
        labels_BT: [B, T] int64; -100 is not learnt.
        turn_ids_BT: [B, T] int64 or None.

    Raises:
        ValueError: when logits were kept of some positions only.
    """
    logits_SV, targets_S = supervised(logits_BTV, labels_BT, turn_ids_BT)
    return torch.nn.functional.cross_entropy(logits_SV.float(), targets_S, reduction="sum") / max(len(targets_S), 1)


def next_token_loss_of_hidden(
    hidden_BTD: Tensor, head: nn.Module, labels_BT: Tensor, turn_ids_BT: Tensor | None, chunk: int | None
) -> Tensor:
    """`next_token_loss` of `head(hidden)`, without logits of what is not learnt.

    Args:
        hidden_BTD: [B, T, D], the decoder's last hidden states.
        head: The language model's head, D -> Vocab.
        labels_BT: [B, T] int64; -100 is not learnt.
        turn_ids_BT: [B, T] int64 or None.
        chunk: Tokens whose logits are held at once; None: all that are learnt.
    """
    hidden_SD, targets_S = supervised(hidden_BTD, labels_BT, turn_ids_BT)
    if chunk is None:
        loss = nn.functional.cross_entropy(head(hidden_SD).float(), targets_S, reduction="sum")
    else:
        loss = linear_cross_entropy(hidden_SD, head, targets_S, chunk)
    return loss / max(len(targets_S), 1)


def supervised(logits_BTV: Tensor, labels_BT: Tensor, turn_ids_BT: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits and labels of all tokens that are learnt.

    Args:
        logits_BTV: [B, T, Vocab]; or hidden states [B, T, D], of which those that predict are taken likewise.
        labels_BT: [B, T] int64; -100 is not learnt.
        turn_ids_BT: [B, T] int64 or None.

    Returns:
        [S, Vocab] (or [S, D]) and [S].

    Raises:
        ValueError: when logits were kept of some positions only.
    """
    if logits_BTV.shape[:2] != labels_BT.shape:
        raise ValueError(
            f"labels of shape {tuple(labels_BT.shape)} for logits at {tuple(logits_BTV.shape[:2])} positions"
        )
    predictor_BT = predictors(torch.zeros_like(labels_BT) if turn_ids_BT is None else turn_ids_BT)
    row_S, column_S = ((labels_BT != -100) & (predictor_BT >= 0)).nonzero(as_tuple=True)
    return logits_BTV[row_S, predictor_BT[row_S, column_S]], labels_BT[row_S, column_S]
