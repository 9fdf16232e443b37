"""The official LLaVA-Mini release (ictnlp/LLaVA-Mini): its config and parameter names, mapped to ours.

The release's weights need its own order of operations: compressor before projector, compressed tokens fused.
"""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig, PreTrainedConfig

from llava_mini.errors import UserError, refused
from llava_mini.models.configuration import LlavaMiniConfig
from llava_mini.models.interop.checkpoint import Layout

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
    """Convert the release's config, checked by `check_config`, to ours."""
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
    """Convert a config of the release's order, query compression with 8 heads and Llama to the release's config.

    `vision_tower` is the Hub id or folder from which the release reads the vision tower's config.

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
            raise refused(name, value, "the official release has no other", only=str(only))
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
