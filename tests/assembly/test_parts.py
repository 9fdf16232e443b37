"""A model from a vision tower and a language model that lie in folders, as `model.weights=parts` makes it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.refusals import refuses
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from llava_mini import assembly
from llava_mini.config import Config
from llava_mini.data.stream.pixels import PixelTransform
from llava_mini.errors import UserError
from llava_mini.models.interop.parts import language_model_folder
from llava_mini.models.lazy_linear import LazyLinear

Resolve = Callable[..., Config]
VISION = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=64,
              patch_size=8)  # fmt: skip


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, Any]:
    """CLIP, and Qwen2 with tied embeddings and more rows than the tokenizer has words."""
    text = AutoConfig.for_model(
        "qwen2", vocab_size=80, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=None,
        max_position_embeddings=512,
    )  # fmt: skip
    tower, language_model = CLIPVisionModel(CLIPVisionConfig(**VISION)), AutoModelForCausalLM.from_config(text)
    tower.save_pretrained(tmp_path / "tower")
    language_model.save_pretrained(tmp_path / "text")
    return {"tower": tower, "text": language_model}


@pytest.fixture
def from_parts(config_of: Resolve, tmp_path: Path) -> Resolve:
    """from_parts("key=value", ...): a config whose parts say their shapes themselves."""

    def make(*overrides: str) -> Config:
        parts = [f"model.vision_tower={tmp_path / 'tower'}", f"model.language_model={tmp_path / 'text'}"]
        config = config_of("model.weights=parts", *parts, *overrides)
        return config.changed({"model": {"vision_feature_layer": -2, "vision_config": {}, "text_config": {}}})

    return make


@torch.no_grad()
def test_parts_are_taken_over_and_the_rest_is_new(parts: dict[str, Any], from_parts: Resolve, tmp_path: Path) -> None:
    config = from_parts()
    tokenizer = assembly.build_tokenizer(config)
    assembly.seed_run(config)
    assembly.check_model(config)
    model = assembly.build_model(config, tokenizer)
    for part, source in ((model.vision_tower, parts["tower"]), (model.language_model, parts["text"])):
        state = source.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in part.state_dict().items())
    layers = model.language_model.get_decoder().layers
    assert torch.equal(model.prefusion.layers[1].mlp.up_proj.weight, layers[1].mlp.up_proj.weight)  # fusion.init=copy
    assert torch.equal(model.compressor.attention.out_proj.weight, torch.eye(32))
    assert 0.01 < model.projector.linear_1.weight.std() < 0.03 and model.projector.linear_1.bias.abs().max() == 0
    rotary = model.prefusion.rotary_emb.inv_freq
    assert torch.equal(rotary, model.language_model.get_decoder().rotary_emb.inv_freq)
    assert model.config.text_config is model.language_model.config
    assert all(not tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    processor = assembly.build_processor(config, model, tokenizer)
    inputs = processor(images=torch.zeros(64, 64, 3).byte().numpy(), text="<image> what color <answer>")
    expected = model.eval()(**inputs).logits
    assert torch.isfinite(expected).all()
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(again(**inputs).logits, expected)
    assert again.language_model.lm_head.weight is again.get_input_embeddings().weight


@pytest.mark.usefixtures("parts")
def test_the_new_parts_follow_the_seed_and_the_type(from_parts: Resolve) -> None:
    config = from_parts("fusion.init=random")
    tokenizer, made = assembly.build_tokenizer(config), []
    for seed in (0, 0, 1):
        assembly.seed_run(replace(config, seed=seed))
        made.append(assembly.build_model(config, tokenizer, dtype=torch.bfloat16))
    assert {parameter.dtype for parameter in made[0].parameters()} == {torch.bfloat16}
    first, same, other = (model.prefusion.layers[0].mlp.up_proj.weight for model in made)
    assert torch.equal(first, same) and not torch.equal(first, other)


@pytest.mark.usefixtures("parts")
def test_meta_needs_no_weights(from_parts: Resolve, tmp_path: Path) -> None:
    config = from_parts()
    tokenizer = assembly.build_tokenizer(config)
    (tmp_path / "text" / "model.safetensors").unlink()
    model = assembly.build_model(config, tokenizer, device="meta")
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.config.text_config.hidden_size == 48


@torch.no_grad()
@pytest.mark.usefixtures("parts")
def test_siglips_tower_gets_siglips_pictures(from_parts: Resolve, tmp_path: Path) -> None:
    """The whole picture in its square, from -1 to 1, in the processor and in the data alike."""
    SiglipVisionModel(SiglipVisionConfig(**VISION)).save_pretrained(tmp_path / "tower")
    config = from_parts("compressor.num_heads=4")
    tokenizer = assembly.build_tokenizer(config)
    model = assembly.build_model(config, tokenizer)
    with pytest.raises(UserError, match=r"SigLIP's images are resized to a square"):
        assembly.build_processor(config, model, tokenizer)
    config = config.changed({"model": {"image_processor": {}}})
    processor = assembly.build_processor(config, model, tokenizer)
    picture = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    theirs = SiglipImageProcessorPil(size={"height": 64, "width": 64})(Image.fromarray(picture), return_tensors="pt")
    inputs = processor(images=picture, text="<image> what color <answer>")
    assert torch.equal(inputs["pixel_values"][0], theirs["pixel_values"])
    transform = PixelTransform.from_image_processor(processor.image_processor)
    assert not transform.cut and transform.size == 64
    assert torch.isfinite(model.eval()(**inputs).logits).all()


@pytest.mark.usefixtures("parts")
def test_a_frozen_language_model_comes_from_its_files_or_from_the_hubs_cache(
    parts: dict[str, Any], from_parts: Resolve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache's snapshots are links to blobs; what the base is packed from is what is stored."""
    snapshot, blobs = (tmp_path / "hub" / "models--some--model" / name for name in ("snapshots/1234", "blobs"))
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("1234")
    for path in (tmp_path / "text").iterdir():
        (blobs / path.name).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    for module in ("huggingface_hub.constants", "transformers.utils.hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert language_model_folder("some/model").resolve() == snapshot.resolve()
    config = from_parts("finetune=qlora", "trainer.precision=bf16-mixed")
    tokenizer = assembly.build_tokenizer(config)
    model = assembly.build_model(config, tokenizer)
    waiting = [(name, each) for name, each in model.language_model.named_modules() if isinstance(each, LazyLinear)]
    state = parts["text"].state_dict()
    assert len(waiting) == 3 * 7 and all(torch.equal(each.read(), state[f"{name}.weight"]) for name, each in waiting)
    assert torch.equal(waiting[0][1].bias, state[f"{waiting[0][0]}.bias"])
    assert model.language_model.lm_head.weight is model.get_input_embeddings().weight
    assembly.fine_tune(config, model)
    processor = assembly.build_processor(config, model, tokenizer)
    inputs = processor(images=torch.zeros(64, 64, 3).byte().numpy(), text="<image> what color <answer>")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(model.eval()(**inputs).logits).all()


@torch.no_grad()
def test_the_tower_alone(parts: dict[str, Any], from_parts: Resolve) -> None:
    config = from_parts()
    model = assembly.build_vision_model(config, assembly.build_tokenizer(config))
    state = parts["tower"].state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.vision_tower.state_dict().items())
    assert all(parameter.is_meta for parameter in model.language_model.parameters())


@pytest.mark.usefixtures("parts")
def test_a_preset_that_says_something_else_is_refused(from_parts: Resolve) -> None:
    config = from_parts()
    tokenizer = assembly.build_tokenizer(config)
    config = config.changed({"model": {"text_config": {"model_type": "qwen2", "num_hidden_layers": 3}}})
    assert assembly.build_model(config, tokenizer).config.text_config.hidden_size == 48  # what it does not say
    shape = {"model_type": "qwen2", "hidden_size": 64, "vocab_size": 80}
    config = config.changed({"model": {"text_config": shape}})
    with refuses("model.text_config.hidden_size", 64):
        assembly.build_model(config, tokenizer)


def test_weights_in_several_files_are_loaded(config_of: Resolve, model_of: Any, tmp_path: Path) -> None:
    source = model_of(config_of("seed=5"))
    source.save_pretrained(tmp_path / "weights", max_shard_size="100KB")
    assert len(list((tmp_path / "weights").glob("model-*.safetensors"))) > 1
    model = model_of(config_of("seed=6", f"model.weights=[{tmp_path / 'weights'}]", "fusion.init=random"))
    state = source.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
