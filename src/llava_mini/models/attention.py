"""Positions and attention masks of sequences in which some entries are hidden and some form independent turns.

Pre-fusion hides answers, placeholders and padding, and counts positions over visible entries only (REFERENCE, release).
Independent turns share a prefix (the image). Each turn attends to the prefix and to itself, as if it alone followed the
prefix.

Shapes: B sequences, L entries.
"""

import torch
from torch import Tensor


def packed_positions(visible_BL: Tensor, turn_ids_BL: Tensor | None = None) -> Tensor:
    """Position of every entry, counted over visible entries; every turn restarts after the shared prefix.

    A hidden entry gets an arbitrary position in range; nothing reads it.

    Example:
        entry     img img  q1  a1  q2  a2  pad
        turn        0   0   1   1   2   2    0
        visible     1   1   1   1   1   1    0
        position    0   1   2   3   2   3    5

    Args:
        visible_BL: Mask of the visible entries, [B, L] bool.
        turn_ids_BL: Turn of every entry, [B, L] int64; 0 for the shared prefix; turns ascend. None: one sequence.

    Returns:
        Positions, [B, L] int64.
    """
    visible = visible_BL.long()
    if turn_ids_BL is None:
        return (visible.cumsum(1) - 1).clamp(min=0)
    num_turns = int(turn_ids_BL.max()) + 1
    count_BI = visible.new_zeros(len(visible), num_turns).scatter_add_(1, turn_ids_BL, visible)
    before_BI = count_BI.cumsum(1) - count_BI
    rank_BL = visible.cumsum(1) - 1 - before_BI.gather(1, turn_ids_BL)
    shared_B1 = count_BI[:, :1]
    return torch.where(turn_ids_BL == 0, visible.cumsum(1) - 1, shared_B1 + rank_BL).clamp(min=0)


def packed_mask(visible_BL: Tensor, turn_ids_BL: Tensor | None, dtype: torch.dtype, as_bool: bool = True) -> Tensor:
    """Causal attention mask over visible entries, blocked between independent turns.

    Every entry attends to itself, even a hidden one: a row that attends to nothing would be NaN.

    Example (turns 0 0 1 2, all visible; x: may be attended to):
        img  x . . .
        img  x x . .
        q1   x x x .
        q2   x x . x

    Args:
        visible_BL: Mask of the visible entries, [B, L] bool.
        turn_ids_BL: Turn of every entry, [B, L] int64, or None.
        dtype: Type of the additive mask.
        as_bool: Whether to make a boolean mask (SDPA) instead of an additive one (eager attention).

    Returns:
        Mask, [B, 1, L, L].
    """
    index_L = torch.arange(visible_BL.shape[1], device=visible_BL.device)
    allowed = (index_L[None, :] <= index_L[:, None])[None] & visible_BL[:, None, :]
    if turn_ids_BL is not None:
        key, query = turn_ids_BL[:, None, :], turn_ids_BL[:, :, None]
        allowed = allowed & ((key == 0) | (key == query))
    allowed = (allowed | torch.eye(len(index_L), dtype=torch.bool, device=index_L.device)[None])[:, None]
    if as_bool:
        return allowed
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)


def mask_for(implementation: str, visible_BL: Tensor, turn_ids_BL: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return `packed_mask` in the form that an attention implementation of transformers reads.

    Raises:
        ValueError: for an implementation that cannot take a custom mask (flash attention).
    """
    if implementation not in ("sdpa", "eager"):
        raise ValueError(f"attention implementation {implementation!r}: LLaVA-Mini's masks need 'sdpa' or 'eager'")
    return packed_mask(visible_BL, turn_ids_BL, dtype, as_bool=implementation == "sdpa")
