"""Frames fused with an instruction as the model's forward pass does it."""

from torch import Tensor

from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.models.frames import Frames
from llava_mini.models.fused_frames import FusedFrames


def fused_with(
    model: LlavaMiniForConditionalGeneration, frames: Frames, text_BTD: Tensor, said_BT: Tensor, num_frames_B: Tensor
) -> tuple[Tensor, Tensor]:
    """Return compressed tokens of all frames [sum of K, D] and the text [B, T, D]."""
    fused = FusedFrames(text_BTD, said_BT, None, num_frames_B)
    for rows_F, part in model.parts(frames):
        visual = model.compress_and_project(model.encode_frames(part), part.num_views)
        fused.add(rows_F, visual, *model.fuse(visual, fused.instruction_of(rows_F)))
    return fused.tokens(), fused.text()
