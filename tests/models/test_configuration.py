"""The config: its defaults are the paper's model, its parts come as configs or dicts, and wrong values are named."""

from typing import Any

import pytest
from tests.refusals import refuses
from transformers import AutoConfig, CLIPVisionConfig, Qwen2Config, SiglipVisionConfig

from llava_mini.errors import UserError
from llava_mini.models import LlavaMiniConfig


def test_defaults_are_the_published_model() -> None:
    config = LlavaMiniConfig()
    assert (config.vision_config.image_size // config.vision_config.patch_size) ** 2 == 576
    assert config.vision_config.hidden_size == 1024 and config.vision_config.num_hidden_layers == 24
    assert config.text_config.model_type == "llama"
    assert config.compressor == {"_target_": "llava_mini.models.compressors.query.QueryCompressor", "C": 1}
    assert (config.num_fusion_layers, config.vision_feature_layer) == (4, -2)
    assert config.compress_before_projection and config.fuse_compressed_tokens


def test_parts_as_dicts_and_as_configs() -> None:
    config = LlavaMiniConfig(
        vision_config={"model_type": "siglip_vision_model", "hidden_size": 32, "num_attention_heads": 4},
        text_config=Qwen2Config(hidden_size=48, num_attention_heads=4),
    )
    assert isinstance(config.vision_config, SiglipVisionConfig) and config.vision_config.hidden_size == 32
    assert isinstance(config.text_config, Qwen2Config) and config.text_config.hidden_size == 48


def test_a_dict_without_model_type_is_of_the_default_type() -> None:
    config = LlavaMiniConfig(vision_config={"hidden_size": 96}, text_config={"hidden_size": 64})
    assert isinstance(config.vision_config, CLIPVisionConfig)
    assert config.text_config.model_type == "llama"


def test_the_caller_keeps_his_dict() -> None:
    given = {"model_type": "llama", "hidden_size": 64}
    LlavaMiniConfig(text_config=given)
    assert given == {"model_type": "llama", "hidden_size": 64}


def test_dict_round_trip(make_config) -> None:
    config = make_config(num_fusion_layers=1, compress_before_projection=False, fuse_compressed_tokens=False)
    again = LlavaMiniConfig(**config.to_dict())
    assert again.to_dict() == config.to_dict()
    assert again.text_config.to_dict() == config.text_config.to_dict()


def test_file_round_trip_through_auto_config(make_config, tmp_path) -> None:
    config = make_config(vision_feature_layer=-1, compressor={"_target_": "some.Class", "C": 3})
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(again, LlavaMiniConfig)
    assert again.compressor == {"_target_": "some.Class", "C": 3} and again.vision_feature_layer == -1
    assert again.vision_config.to_dict() == config.vision_config.to_dict()


@pytest.mark.parametrize("tied", [False, True])
def test_tied_embeddings_are_the_language_models_choice(make_text_config, make_config, tied: bool) -> None:
    assert make_config(text_config=make_text_config(tie_word_embeddings=tied)).tie_word_embeddings is tied


def test_unknown_architecture() -> None:
    with refuses("model_type", "llamma"):
        LlavaMiniConfig(text_config={"model_type": "llamma"})


@pytest.mark.parametrize("fields", [{"hidden_size": "wide"}, {"hidden_size": 30, "num_attention_heads": 4}])
def test_fields_that_an_architecture_refuses(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"config of llama: .*hidden.size") as caught:
        LlavaMiniConfig(text_config={"model_type": "llama", **fields})
    assert "\n" not in str(caught.value)


def test_negative_number_of_fusion_layers() -> None:
    with refuses("num_fusion_layers", -1, "0 (no pre-fusion) and above"):
        LlavaMiniConfig(num_fusion_layers=-1)


@pytest.mark.parametrize("layer", [4, -5])
def test_feature_layer_that_the_tower_does_not_have(make_config, layer: int) -> None:
    with refuses("vision_feature_layer", layer) as caught:
        make_config(vision_feature_layer=layer)
    assert "-4 to 3" in str(caught.value)


def test_unknown_activation(make_config) -> None:
    with refuses("projector_hidden_act", "gelo"):
        make_config(projector_hidden_act="gelo")
