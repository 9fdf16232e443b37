"""FusedFrames: compressed tokens and fused text of frames that are processed part by part.

Shapes: B samples, T tokens, S tokens of the longest instruction, F frames of a part, K compressed tokens of a frame, D
width of the language model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llava_mini.models.visual_tokens import VisualTokens


@dataclass(frozen=True)
class Instruction:
    """Instruction that each of F frames is fused with."""

    text_FSD: Tensor  # without gradients: none flow back into text embeddings through pre-fusion (release)
    visible_FS: Tensor  # True: a real entry
    turn_ids_FS: Tensor | None  # 0 for shared text; None: one conversation


@dataclass(frozen=True)
class Packed:
    """Indices of the chosen entries of [B, T], in order, in S columns (S: the largest count in a sequence).

    So later work does not pay for the others.

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


class FusedFrames:
    """Collects what the frames of a batch become; the fused text of a sample is the mean over its frames.

    Only the instruction goes through pre-fusion. Answers, placeholders and padding, which it must not read, cost
    nothing. Text outside the instruction, and samples without a frame, keep their plain embedding.

    Args:
        text_BTD: Embeddings of all text.
        instruction_BT: Mask of the instruction.
        turn_ids_BT: Turn of every token; None: one conversation.
        num_frames_B: Number of frames of each sample.
    """

    def __init__(self, text_BTD: Tensor, instruction_BT: Tensor, turn_ids_BT: Tensor | None, num_frames_B: Tensor):
        self._plain_BTD, self._num_frames_B = text_BTD, num_frames_B
        self._owner_F = torch.arange(len(text_BTD), device=text_BTD.device).repeat_interleave(num_frames_B)
        self._fused_BT = instruction_BT & (num_frames_B > 0)[:, None]
        self._packed = Packed.of(self._fused_BT)
        self._text_BSD = self._packed.take(text_BTD)
        self._turn_ids_BS = None if turn_ids_BT is None else self._packed.take(turn_ids_BT)
        # half precision cannot represent a sum over thousands of frames
        precise = torch.promote_types(self._text_BSD.dtype, torch.float32)
        self._sum_BSD = torch.zeros_like(self._text_BSD, dtype=precise)
        self._tokens: list[Tensor] = []
        self._frame_of_token: list[Tensor] = []

    def instruction_of(self, rows_F: Tensor) -> Instruction:
        """Return the instruction of the samples that frames at these indices of the batch belong to."""
        owner_F = self._owner_F[rows_F]
        turn_ids_BS = self._turn_ids_BS
        return Instruction(
            self._text_BSD.detach()[owner_F],
            self._packed.mask_BS[owner_F],
            None if turn_ids_BS is None else turn_ids_BS[owner_F],
        )

    def add(self, rows_F: Tensor, visual: VisualTokens, compressed_FKD: Tensor, fused_FSD: Tensor) -> None:
        """Add the frames at indices `rows_F`: their compressed tokens, and the instruction after each of them.

        `visual` are their tokens before pre-fusion, which say which tokens are real.
        """
        owner_F, real_FK = self._owner_F[rows_F], visual.compressed_mask_FK
        self._sum_BSD = self._sum_BSD.index_add(0, owner_F, fused_FSD.to(self._sum_BSD.dtype))
        self._tokens.append(compressed_FKD[real_FK])
        self._frame_of_token.append(rows_F.repeat_interleave(real_FK.sum(1)))

    def tokens(self) -> Tensor:
        """Return the compressed tokens of all frames, in the order of the frames: [sum of K, D]."""
        return torch.cat(self._tokens)[torch.argsort(torch.cat(self._frame_of_token), stable=True)]

    def text(self) -> Tensor:
        """Return the text with the instruction fused: [B, T, D]."""
        frames_B11 = self._num_frames_B.clamp(min=1)[:, None, None]
        mean_BSD = (self._sum_BSD / frames_B11).to(self._plain_BTD.dtype)
        return self._plain_BTD.masked_scatter(self._fused_BT[..., None], mean_BSD[self._packed.mask_BS])
