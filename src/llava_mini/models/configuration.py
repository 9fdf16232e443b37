"""Configuration of a LLaVA-Mini model: its vision tower, language model, compressor and pre-fusion.

Where the paper and the official release differ in the order of operations, each order is a value of a field
(`compress_before_projection`, `fuse_compressed_tokens`). The defaults are the release's.
"""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN

from llava_mini.errors import UserError, refused
from llava_mini.models.rotary import check_scaling

PARTS = ("vision_tower", "projector", "compressor", "prefusion", "language_model")
PARTS_BETWEEN = PARTS[1:-1]  # between vision tower and language model


class LlavaMiniConfig(PreTrainedConfig):
    """Configuration of `LlavaMiniForConditionalGeneration`; every attribute is a keyword argument.

    Attributes:
        vision_config: Config or dict of any vision model that `AutoModel` builds (CLIP, SigLIP). Default: CLIP
            ViT-L/14-336.
        text_config: Config or dict of a Llama, Mistral or Qwen2 model. Default: the defaults of transformers' Llama.
        image_token_id: Id of the placeholder, which input_ids contains once for every compressed token. It is never
            embedded, so it may be beyond the vocabulary.
        vision_feature_layer: Index into the vision tower's hidden states; -2 is the layer before the last.
        projector_hidden_act: Activation between the projector's two layers.
        compressor: Class (`_target_`) and its keyword arguments, for example C, the side of its grid.
        num_fusion_layers: Number of pre-fusion layers, N_fusion; 0 for none.
        compress_before_projection: Whether the compressor reads the vision tower's features (True, release) or
            projected patches (False, paper).
        fuse_compressed_tokens: Whether compressed tokens pass through pre-fusion too (True, release) or reach the
            language model unchanged (False, paper).
        context_scaling: Scaling for more tokens than the language model was trained on: `kind` (linear, dynamic, yarn)
            and `tokens`, see `models.rotary`. `text_config` stays as it was trained, because pre-fusion is built from
            it too.
    """

    model_type = "llava_mini"
    sub_configs = {"text_config": AutoConfig, "vision_config": AutoConfig}

    vision_config: Any = None
    text_config: Any = None
    image_token_id: int = 32000
    vision_feature_layer: int = -2
    projector_hidden_act: str = "gelu"
    compressor: Any = None
    num_fusion_layers: int = 4
    compress_before_projection: bool = True
    fuse_compressed_tokens: bool = True
    context_scaling: Any = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.vision_config = _sub_config(self.vision_config, "clip_vision_model", CLIP_VIT_L_336)
        self.text_config = _sub_config(self.text_config, "llama", {})
        if self.compressor is None:
            self.compressor = {"_target_": "llava_mini.models.compressors.query.QueryCompressor", "C": 1}
        if self.num_fusion_layers < 0:
            raise refused("num_fusion_layers", self.num_fusion_layers, allowed="0 (no pre-fusion) and above")
        layers = self.vision_config.num_hidden_layers
        if not -layers - 1 <= self.vision_feature_layer <= layers:
            reason = f"the vision tower's hidden states are {-layers - 1} to {layers}"
            raise refused("vision_feature_layer", self.vision_feature_layer, reason)
        if self.projector_hidden_act not in ACT2FN:
            raise refused("projector_hidden_act", self.projector_hidden_act, allowed=", ".join(sorted(ACT2FN)))
        check_scaling(self.context_scaling, self.text_config)
        dtype = self.dtype or kwargs.get("torch_dtype")
        if isinstance(dtype, str) and not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise refused("dtype", dtype, allowed="float32, bfloat16, float16 and auto")
        self.tie_word_embeddings = self.text_config.tie_word_embeddings
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build a config from a dict, as in transformers.

        Raises:
            UserError: for the config of another model, also for the official release's, which has the same model_type.
        """
        found = config_dict.get("model_type")
        if found != cls.model_type or "text_config" not in config_dict or "vision_config" not in config_dict:
            raise UserError(
                f"config of another model (model_type={found!r}): needed are model_type={cls.model_type!r}, text_config"
                " and vision_config; `llava-mini convert official` reads the official release's"
            )
        return super().from_dict(config_dict, **kwargs)


CLIP_VIT_L_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 336,
    "projection_dim": 768,
}


def _sub_config(given: Any, default_type: str, default_fields: dict[str, Any]) -> PreTrainedConfig:
    if isinstance(given, PreTrainedConfig):
        return given
    fields = dict(default_fields if given is None else given)
    model_type = fields.pop("model_type", default_type)
    if model_type not in CONFIG_MAPPING:
        raise refused("model_type", model_type, "not an architecture that transformers knows")
    try:
        return CONFIG_MAPPING[model_type](**fields)
    except StrictDataclassError as error:
        raise UserError(f"config of {model_type}: {' '.join(str(error).split())}") from error
