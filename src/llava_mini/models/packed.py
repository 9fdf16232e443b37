"""Packed: the chosen entries of every sequence moved to its front, so that later work does not pay for the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """Indices of the chosen entries of [B, T], in order, in S columns (S: the largest count in a sequence).

    Example (x: chosen):
        a b c d e f       b d e
        . x . x x .       x x x
        x . . . . x       a f .

    Attributes:
        index_BS: Index in T of every chosen entry, [B, S] int64; 0 where there is none.
        mask_BS: Mask of the columns that have an entry, [B, S] bool.
    """

    index_BS: Tensor
    mask_BS: Tensor

    @classmethod
    def of(cls, chosen_BT: Tensor) -> Packed:
        """Pack the entries of [B, T] bool that are True."""
        count_B = chosen_BT.sum(1)
        longest = int(count_B.max()) if len(count_B) else 0
        index_BS = torch.argsort(~chosen_BT, dim=1, stable=True)[:, :longest]
        mask_BS = torch.arange(longest, device=chosen_BT.device) < count_B[:, None]
        return cls(index_BS.masked_fill(~mask_BS, 0), mask_BS)

    def take(self, values: Tensor) -> Tensor:
        """Take the chosen entries: [B, T] or [B, T, D] -> [B, S] or [B, S, D]; an arbitrary one where there is none."""
        index = self.index_BS if values.dim() == 2 else self.index_BS[..., None].expand(-1, -1, values.shape[2])
        return values.gather(1, index)
