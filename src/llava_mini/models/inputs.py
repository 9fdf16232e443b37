"""Checks that a batch must pass before the model pairs frames with text, and the part of the text for pre-fusion.

A wrong count is an error that contains both numbers: frames that slip to another sample would go unnoticed.

Shapes: B samples, T tokens, F frames of the whole batch, V views of a frame, N patches of a view, K compressed tokens
of a frame, Dv width of the vision tower.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.utils import TransformersKwargs

from llava_mini.batch import IGNORE
from llava_mini.errors import UserError
from llava_mini.token_layout import TokenLayout

# Keywords that transformers' own models take besides named arguments. PEFT passes inputs_embeds, None if it has none.
_KEYWORDS = (*sorted(TransformersKwargs.__optional_keys__), "inputs_embeds")


def language_model_keywords(input_ids: Tensor | None, keywords: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords that a forward pass does not name itself, as its language model takes them.

    Raises:
        TypeError: for a keyword that nothing reads.
        ValueError: for embeddings instead of ids, or without ids.
    """
    if unknown := sorted(keywords.keys() - set(_KEYWORDS)):
        named, allowed = ", ".join(map(repr, unknown)), ", ".join(_KEYWORDS)
        raise TypeError(f"forward() takes no keyword {named}; besides its own arguments it takes {allowed}")
    if keywords.get("inputs_embeds") is not None:
        raise ValueError("inputs_embeds: input_ids are needed, whose placeholders say where frames are")
    if input_ids is None:
        raise ValueError("input_ids are needed")
    return {name: value for name, value in keywords.items() if name != "inputs_embeds"}


class NoPromptTuning(torch.nn.Module):
    """Module that PEFT gets as word embeddings: with PEFT's embedded prompts the model would read no placeholders."""

    def forward(self, *_args: Any, **_kwargs: Any) -> Tensor:
        """Raises UserError: prompts must be ids."""
        raise UserError(
            "PEFT's prompt tuning and p-tuning give embeddings, not ids, whose placeholders say where frames are; "
            "allowed are prefix tuning and adapters"
        )


def check_pixels(pixel_values: Tensor, num_views_F: Tensor | None) -> None:
    """Raises ValueError unless pixels are normalized numbers [F, V, 3, H, W] and `num_views` fits them."""
    if not pixel_values.is_floating_point():
        raise ValueError(f"pixel_values is {pixel_values.dtype}, expected normalized floating-point numbers")
    if pixel_values.dim() != 5:
        raise ValueError(
            f"pixel_values has shape {tuple(pixel_values.shape)}, expected [frames, views, 3, height, width]"
        )
    _check_views(num_views_F, *pixel_values.shape[:2])


def check_features(features: Tensor, num_views_F: Tensor | None, num_patches: int, width: int) -> None:
    """Raises ValueError unless features are [F, V, N, Dv] and `num_views` fits them."""
    if features.dim() != 4 or features.shape[2:] != (num_patches, width):
        raise ValueError(
            f"image_features has shape {tuple(features.shape)}, expected [frames, views, {num_patches}, {width}]"
        )
    _check_views(num_views_F, *features.shape[:2])


def _check_views(num_views_F: Tensor | None, frames: int, views: int) -> None:
    if num_views_F is None:
        return
    if len(num_views_F) != frames:
        raise ValueError(f"num_views is for {len(num_views_F)} frames, the batch has {frames}")
    if frames and int(num_views_F.max()) > views:
        raise ValueError(f"num_views has a frame of {int(num_views_F.max())} views, the batch has {views} of each")


def check_frames(num_frames_B: Tensor | None, frames: int, batch: int) -> Tensor:
    """Return `num_frames`; raises ValueError unless it assigns all frames to all samples."""
    if num_frames_B is None:
        raise ValueError("num_frames is needed with pixel_values or image_features: the frames of each sample")
    if len(num_frames_B) != batch or int(num_frames_B.sum()) != frames:
        raise ValueError(
            f"num_frames has {len(num_frames_B)} samples and {int(num_frames_B.sum())} frames, "
            f"the batch has {batch} samples and {frames} frames"
        )
    return num_frames_B


def check_placeholders(placeholder_BT: Tensor, views_F: Tensor, num_frames_B: Tensor, layout: TokenLayout) -> None:
    """Raises ValueError unless every sample has as many placeholders as its own frames take tokens."""
    views_by_sample = views_F.split(num_frames_B.tolist())
    for i, (found, views) in enumerate(zip(placeholder_BT.sum(1).tolist(), views_by_sample, strict=True)):
        if found != (expected := layout.sample(views.tolist())):
            raise ValueError(
                f"sample {i}: input_ids has {found} image placeholders, its {len(views)} frames make {expected} tokens"
            )


def check_no_frames(placeholder_BT: Tensor, num_frames_B: Tensor | None) -> None:
    """Raises ValueError when placeholders or counts refer to frames that were not given."""
    if bool(placeholder_BT.any()):
        raise ValueError(f"input_ids has {int(placeholder_BT.sum())} image placeholders and no image was given")
    if num_frames_B is not None and bool(num_frames_B.any()):
        raise ValueError(f"num_frames has {int(num_frames_B.sum())} frames and no image was given")


def check_answers_are_known(labels: Tensor | None, instruction_mask: Tensor | None) -> None:
    """Raises ValueError where nothing separates answers from instruction: pre-fusion must not read answers in training.

    transformers' Trainer leaves labels out where it computes the loss itself (label smoothing, a custom loss).
    """
    if labels is None and instruction_mask is None:
        raise ValueError(
            "labels: in training they (or instruction_mask) are needed, or pre-fusion would see the answers; with "
            "label smoothing or a loss of your own give instruction_mask (TRL's SFTTrainer: assistant_only_loss=True)"
        )


def instruction(
    attention_mask: Tensor, placeholder_BT: Tensor, labels: Tensor | None, instruction_mask: Tensor | None
) -> Tensor:
    """Text that pre-fusion reads, [B, T] bool. Tokens beyond a given instruction_mask (generated ones) are left out."""
    visible_BT = attention_mask[:, -placeholder_BT.shape[1] :].bool() & ~placeholder_BT
    if instruction_mask is not None:
        missing = placeholder_BT.shape[1] - instruction_mask.shape[1]
        return visible_BT & torch.nn.functional.pad(instruction_mask.bool(), (0, missing))
    return visible_BT if labels is None else visible_BT & (labels == IGNORE)
