"""The official LLaVA-Mini release (ictnlp/LLaVA-Mini): its config, parameter names and inputs, mapped to ours.

The release marks an image with one id -200 and splices tokens in at run time; ours has one placeholder for every
compressed token. The release's weights need its own order of operations: compressor before projector, compressed tokens
fused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedConfig

from llava_mini.errors import UserError
from llava_mini.models.configuration import LlavaMiniConfig
from llava_mini.models.interop.checkpoint import check_shapes
from llava_mini.models.interop.layout import Layout
from llava_mini.models.llava_mini import LlavaMiniForConditionalGeneration

OFFICIAL_IMAGE_ID = -200
OFFICIAL_PAD_ID = 0  # the release hides this id from pre-fusion everywhere, a real token or not
LAYOUT = Layout(
    (
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
)
_QUERY = "llava_mini.models.compressors.query.QueryCompressor"
_ARCHITECTURE = "LlavaMiniLlamaForCausalLM"
_NUM_HEADS = 8
_NEEDED = ("mm_vision_select_layer", "compressor_size", "prefusion_layer_num")
_OURS = ("compressor_size", "prefusion_layer_num", "resolution_ratio")


def from_official(
    config: dict[str, Any], state_dict: dict[str, Tensor], vision_config: dict[str, Any]
) -> LlavaMiniForConditionalGeneration:
    """Build a model with the release's weights.

    Args:
        config: Content of the release's config.json: Llama's fields, mm_*, compressor_size, prefusion_layer_num.
        state_dict: Tensors under the release's names, vision tower included.
        vision_config: Vision config of CLIP.

    Raises:
        UserError: for another model's config; for missing, unknown or misshapen tensors, by the release's name.
    """
    check_config(config)
    model = LlavaMiniForConditionalGeneration(our_config(config, CLIPVisionConfig(**vision_config)))
    ours = {LAYOUT.ours(name): tensor for name, tensor in state_dict.items()}
    found, needed = ({name: list(each.shape) for name, each in state.items()} for state in (ours, model.state_dict()))
    check_shapes("official checkpoint", found, needed, LAYOUT.theirs)
    model.load_state_dict(ours)
    return model


def check_config(config: dict[str, Any]) -> None:
    """Refuse the config of another architecture.

    Raises:
        UserError: naming the architecture, what is missing, and what is allowed.
    """
    absent = [key for key in _NEEDED if key not in config]
    if absent:
        found = ", ".join(config.get("architectures") or []) or f"model_type={config.get('model_type')!r}"
        raise UserError(
            f"config of another architecture ({found}), with no {', '.join(absent)}; allowed is the official release's "
            f"{_ARCHITECTURE}"
        )


def our_config(config: dict[str, Any], vision_config: PreTrainedConfig) -> LlavaMiniConfig:
    """Convert the release's config to ours.

    Args:
        config: Config of the release, checked by `check_config`.
        vision_config: Config of its vision tower.
    """
    text_fields = {key: value for key, value in config.items() if not key.startswith("mm_") and key not in _OURS}
    for unfit in ("model_type", "architectures"):
        text_fields.pop(unfit, None)
    text_config = LlamaConfig(**text_fields)
    return LlavaMiniConfig(
        vision_config=vision_config,
        text_config=text_config,
        image_token_id=text_config.vocab_size,
        vision_feature_layer=config["mm_vision_select_layer"],
        compressor={"_target_": _QUERY, "C": config["compressor_size"], "num_heads": _NUM_HEADS},
        num_fusion_layers=config["prefusion_layer_num"],
        compress_before_projection=True,
        fuse_compressed_tokens=True,
    )


def official_config(ours: LlavaMiniConfig, views: str, vision_tower: str) -> dict[str, Any]:
    """Convert our config to the release's.

    Args:
        ours: Config that the release can express: its order of operations, query compression with 8 heads, Llama.
        views: View mode of the processor.
        vision_tower: Hub id or folder from which the release reads the vision tower's config.

    Raises:
        UserError: naming the first value that the release does not have.
    """
    needed = {
        "text_config.model_type": (ours.text_config.model_type, "llama"),
        "vision_config.model_type": (ours.vision_config.model_type, "clip_vision_model"),
        "compressor._target_": (ours.compressor["_target_"], _QUERY),
        "compressor.num_heads": (ours.compressor.get("num_heads", _NUM_HEADS), _NUM_HEADS),
        "compress_before_projection": (ours.compress_before_projection, True),
        "fuse_compressed_tokens": (ours.fuse_compressed_tokens, True),
        "projector_hidden_act": (ours.projector_hidden_act, "gelu"),
    }
    for name, (value, only) in needed.items():
        if value != only:
            raise UserError(f"{name}={value!r}: the official release has {only!r} only")
    fields = ours.text_config.to_dict()
    rope = dict(fields.pop("rope_parameters"))  # the release's version of transformers knows two fields
    theta = rope.pop("rope_theta")
    return {
        **fields,
        "architectures": [_ARCHITECTURE],
        "model_type": "llava_mini",
        "rope_theta": theta,
        "rope_scaling": None if rope["rope_type"] == "default" else rope,
        "compressor_size": ours.compressor["C"],
        "prefusion_layer_num": ours.num_fusion_layers,
        "resolution_ratio": 2 if views == "hd" else 1,
        "image_aspect_ratio": "square" if views == "square" else "pad",
        "mm_vision_tower": vision_tower,
        "mm_vision_select_layer": ours.vision_feature_layer,
        "mm_vision_select_feature": "patch",
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": ours.vision_config.hidden_size,
        "mm_patch_merge_type": "flat",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
    }


def official_batch(
    model: LlavaMiniForConditionalGeneration,
    input_ids: Tensor,
    attention_mask: Tensor,
    images: Tensor | list[Tensor],
    labels: Tensor | None = None,
) -> dict[str, Tensor]:
    """Convert the release's inputs to keyword arguments of our model.

    Args:
        model: Model that defines how many placeholders a frame takes.
        input_ids: Token ids, [B, T], with -200 at the place of the image.
        attention_mask: Mask of the tokens, [B, T].
        images: Pixels [B, V, 3, H, W] (images), [B, F, V, 3, H, W] (videos), or a list of [V, 3, H, W] and
            [F, V, 3, H, W]. The image of a row without -200 is dropped (the release needs a dummy there).
        labels: Token ids to predict, [B, T].

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
            raise UserError(f"input_ids: row {i} has {num_images} images, the release's inputs contain at most 1")
        kept.append(frames[i][: num_images * len(frames[i])])
        repeat = len(kept[-1]) * model.layout.frame(frames[i].shape[1])
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
