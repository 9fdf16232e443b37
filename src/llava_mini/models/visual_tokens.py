"""VisualTokens: patches and compressed tokens of all frames of a batch, whose numbers may differ between frames.

Frames with one view and HD frames are processed separately, each kind at once, and are padded to one tensor here.

Shapes: F frames of the whole batch, P patches of a frame, K compressed tokens of a frame, D width of the language
model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class VisualTokens:
    """Projected patches and compressed tokens; masks are True for entries that are real."""

    patches_FPD: Tensor  # for pre-fusion
    patch_mask_FP: Tensor
    compressed_FKD: Tensor
    compressed_mask_FK: Tensor

    @classmethod
    def of_one_kind(cls, patches_FPD: Tensor, compressed_FKD: Tensor) -> VisualTokens:
        """Make from frames of one kind: everything is real."""
        return cls(patches_FPD, _all_true(patches_FPD), compressed_FKD, _all_true(compressed_FKD))

    @classmethod
    def of_kinds(cls, groups: list[tuple[Tensor, Tensor, Tensor]]) -> VisualTokens:
        """Make from frames of several kinds, of each: which frames [F] bool, their patches, their compressed tokens."""
        patches = merge_groups([(chosen, patches) for chosen, patches, _ in groups])
        return cls(*patches, *merge_groups([(chosen, compressed) for chosen, _, compressed in groups]))


def splice(text_BTD: Tensor, placeholder_BT: Tensor, tokens_ND: Tensor) -> Tensor:
    """Put the N compressed tokens of all frames, in order, at the placeholders: [B, T, D].

    Example (two samples of one frame each, K = 2, `i` a placeholder):
        s  i  i  q        s  a1 a2 q
        s  q  i  i        s  q  b1 b2
    """
    return text_BTD.masked_scatter(placeholder_BT[..., None], tokens_ND.to(text_BTD.dtype))


def merge_groups(groups: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Merge rows of several lengths into one padded tensor [F, max K, D]; also return the mask of what is real.

    A group is the chosen rows [F] bool and their tokens [rows chosen, K of the group, D].
    """
    longest = max(tokens.shape[1] for _, tokens in groups)
    first = groups[0][1]
    merged = first.new_zeros(len(groups[0][0]), longest, first.shape[2])
    mask = torch.zeros(merged.shape[:2], dtype=torch.bool, device=first.device)
    for chosen, tokens in groups:
        merged[chosen] = torch.nn.functional.pad(tokens, (0, 0, 0, longest - tokens.shape[1]))
        mask[chosen, : tokens.shape[1]] = True
    return merged, mask


def _all_true(tokens_FKD: Tensor) -> Tensor:
    return torch.ones(tokens_FKD.shape[:2], dtype=torch.bool, device=tokens_FKD.device)
