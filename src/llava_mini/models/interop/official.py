"""The official LLaVA-Mini release (ictnlp/LLaVA-Mini): its config, parameter names and inputs in terms of ours.

The release marks an image with one id -200 and splices tokens in while it runs; ours has one placeholder for every
compressed token. Its weights need its own order of work: compressor before projector, compressed tokens fused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig

from llava_mini.errors import UserError
from llava_mini.models.configuration import LlavaMiniConfig
from llava_mini.models.llava_mini import LlavaMiniForConditionalGeneration

OFFICIAL_IMAGE_ID = -200
OFFICIAL_PAD_ID = 0  # the release hides this id from pre-fusion wherever it stands, a real token or not
_PREFIXES = (
    ("model.vision_tower.vision_tower.vision_model.", "vision_tower."),
    ("model.compressor.attn.", "compressor.attention."),
    ("model.compressor.ln_q.", "compressor.norm_query."),
    ("model.compressor.ln_kv.", "compressor.norm_patches."),
    ("model.compressor.pos_embed", "compressor.position"),
    ("model.compressor.query", "compressor.query"),
    ("model.mm_projector.0.", "projector.linear_1."),
    ("model.mm_projector.2.", "projector.linear_2."),
    ("model.prefusion_layers.", "prefusion.layers."),
    ("model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)
_NEEDED = ("mm_vision_select_layer", "compressor_size", "prefusion_layer_num")
_OURS = ("compressor_size", "prefusion_layer_num", "resolution_ratio")


def from_official(
    config: dict[str, Any], state_dict: dict[str, Tensor], vision_config: dict[str, Any]
) -> LlavaMiniForConditionalGeneration:
    """A model with the release's weights.

    Args:
        config: The release's config.json: Llama's fields, mm_*, compressor_size, prefusion_layer_num.
        state_dict: All tensors under the release's names, vision tower included.
        vision_config: CLIP's vision config.

    Raises:
        UserError: for another model's config; for missing, unknown or misshapen tensors, by the release's name.
    """
    for key in _NEEDED:
        if key not in config:
            raise UserError(
                f"config has no {key}: not a config of the official release, which has {', '.join(_NEEDED)}"
            )
    text_fields = {key: value for key, value in config.items() if not key.startswith("mm_") and key not in _OURS}
    text_fields.pop("model_type", None)
    text_config = LlamaConfig(**text_fields)
    ours = LlavaMiniConfig(
        vision_config=CLIPVisionConfig(**vision_config),
        text_config=text_config,
        image_token_id=text_config.vocab_size,
        vision_feature_layer=config["mm_vision_select_layer"],
        compressor={
            "_target_": "llava_mini.models.compressors.query.QueryCompressor",
            "C": config["compressor_size"],
            "num_heads": 8,
        },
        num_fusion_layers=config["prefusion_layer_num"],
        compress_before_projection=True,
        fuse_compressed_tokens=True,
    )
    model = LlavaMiniForConditionalGeneration(ours)
    _load(model, state_dict)
    return model


def official_batch(
    model: LlavaMiniForConditionalGeneration,
    input_ids: Tensor,
    attention_mask: Tensor,
    images: Tensor | list[Tensor],
    labels: Tensor | None = None,
) -> dict[str, Tensor]:
    """The release's inputs as keyword arguments of our model.

    Args:
        model: Tells how many placeholders a frame takes.
        input_ids: [B, T] with -200 where the image goes.
        attention_mask: [B, T].
        images: [B, V, 3, H, W] (images), [B, F, V, 3, H, W] (videos), or a list of [V, 3, H, W] and [F, V, 3, H, W].
            The image of a row without -200 is dropped (the release needs a dummy there).
        labels: [B, T].

    Returns:
        input_ids, attention_mask, instruction_mask, pixel_values [F, V, 3, H, W], num_frames, and labels; right-padded.

    Raises:
        UserError: for a row with more than one image.
    """
    frames = [image if image.dim() == 5 else image[None] for image in images]
    rows, kept = [], []
    for i in range(len(input_ids)):
        real = attention_mask[i].bool()
        ids = input_ids[i][real]
        num_images = int((ids == OFFICIAL_IMAGE_ID).sum())
        if num_images > 1:
            raise UserError(f"input_ids: row {i} has {num_images} images, the release's inputs hold at most 1")
        kept.append(frames[i][: num_images * len(frames[i])])
        repeat = len(kept[-1]) * model.tokens_per_frame(frames[i].shape[1])
        times = torch.where(ids == OFFICIAL_IMAGE_ID, repeat, 1)
        row = {"input_ids": ids.masked_fill(ids == OFFICIAL_IMAGE_ID, model.config.image_token_id)}
        row["attention_mask"] = torch.ones_like(ids)
        row["instruction_mask"] = ids != OFFICIAL_PAD_ID
        if labels is not None:
            row["labels"] = labels[i][real].masked_fill(ids == OFFICIAL_IMAGE_ID, -100)
            row["instruction_mask"] &= row["labels"] == -100
        rows.append({name: tensor.repeat_interleave(times) for name, tensor in row.items()})
    fill = {"input_ids": 0, "attention_mask": 0, "instruction_mask": False, "labels": -100}
    batch = {
        name: torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True, padding_value=fill[name])
        for name in rows[0]
    }
    num_frames = torch.tensor([len(frame) for frame in kept])
    return {**batch, "pixel_values": torch.cat(kept), "num_frames": num_frames}


def _our_name(name: str) -> str:
    for theirs, ours in _PREFIXES:
        if name.startswith(theirs):
            return ours + name[len(theirs) :]
    raise UserError(f"tensor {name}: not a name of the official release")


def _their_name(name: str) -> str:
    theirs, ours = next(pair for pair in _PREFIXES if name.startswith(pair[1]))
    return theirs + name[len(ours) :]


def _load(model: LlavaMiniForConditionalGeneration, state_dict: dict[str, Tensor]) -> None:
    """Load tensors that have the release's names."""
    own, names = model.state_dict(), {_our_name(name): name for name in state_dict}
    missing = sorted(_their_name(name) for name in own if name not in names)
    unexpected = sorted(theirs for name, theirs in names.items() if name not in own)
    if missing or unexpected:
        raise UserError(f"official checkpoint: missing tensors {missing}, unexpected {unexpected}")
    for name, theirs in names.items():
        given, needed = list(state_dict[theirs].shape), list(own[name].shape)
        if given != needed:
            raise UserError(f"tensor {theirs}: shape {given}, the config says {needed}")
    model.load_state_dict({name: state_dict[theirs] for name, theirs in names.items()})
