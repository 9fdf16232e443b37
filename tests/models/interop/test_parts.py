"""Vision towers and language models of other projects, in the layouts that transformers writes or has written."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.interop.conftest import VISION
from tests.refusals import refuses
from transformers import (
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    GPT2Config,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from llava_mini.config import resolve
from llava_mini.errors import UserError
from llava_mini.models.interop.parts import (
    check_same,
    load_language_model,
    load_vision_tower,
    text_config_of,
    vision_config_of,
)

Factory = Callable[..., Any]
TEXT = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=50,
            bos_token_id=0, eos_token_id=1, pad_token_id=1)  # fmt: skip
TOWERS: dict[str, Callable[[], Any]] = {
    "clip": lambda: CLIPModel(CLIPConfig(vision_config=VISION, text_config=TEXT)),
    "clip_vision_model": lambda: CLIPVisionModel(CLIPVisionConfig(**VISION)),
    "siglip": lambda: SiglipModel(SiglipConfig(vision_config=VISION, text_config=TEXT)),
    "siglip_vision_model": lambda: SiglipVisionModel(SiglipVisionConfig(**VISION)),
}


def as_pickle(folder: Path, rename: Callable[[str], str] = str) -> None:
    """Put pytorch_model.bin in place of model.safetensors."""
    path = folder / "model.safetensors"
    torch.save({rename(name): tensor for name, tensor in load_file(path).items()}, folder / "pytorch_model.bin")
    path.unlink()


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize("stored", ["safetensors", "pickle", "old names"])
@torch.no_grad()
def test_vision_tower_is_the_source_tower(tmp_path: Path, kind: str, stored: str) -> None:
    source = TOWERS[kind]().eval()
    source.save_pretrained(tmp_path)
    if stored == "pickle":
        as_pickle(tmp_path)
    elif stored == "old names":  # published checkpoints name a tower alone as half of a model
        path = tmp_path / "model.safetensors"
        old = {
            name if kind in ("clip", "siglip") else f"vision_model.{name}": tensor
            for name, tensor in load_file(path).items()
        }
        save_file(old, path, metadata={"format": "pt"})
    half = source.vision_model if kind in ("clip", "siglip") else source
    tower = load_vision_tower(str(tmp_path), torch.float32)
    assert tower.training and tower.config.model_type == vision_config_of(str(tmp_path)).model_type
    pixels = torch.randn(1, 3, 24, 24)
    expected = half(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
    assert torch.equal(tower.eval()(pixel_values=pixels, output_hidden_states=True).hidden_states[-2], expected)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("stored", ["sharded safetensors", "pickle"])
@torch.no_grad()
def test_language_model_is_the_source_model(
    make_text_config: Factory, tmp_path: Path, family: str, stored: str
) -> None:
    tied = family == "qwen2"
    source = AutoModelForCausalLM.from_config(make_text_config(family, tie_word_embeddings=tied)).eval()
    source.save_pretrained(tmp_path, max_shard_size="30KB" if stored.startswith("sharded") else "1GB")
    if stored == "pickle":
        as_pickle(tmp_path)
    else:
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    model = load_language_model(str(tmp_path), torch.float32).eval()
    ids = torch.tensor([[1, 5, 9]])
    assert torch.equal(model(input_ids=ids).logits, source(input_ids=ids).logits)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    assert load_language_model(str(tmp_path), torch.bfloat16).dtype == torch.bfloat16


def drop(folder: Path, name: str, **more: torch.Tensor) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors[name]
    save_file({**tensors, **more}, path, metadata={"format": "pt"})


class Command:
    """What a hostile pickle would run."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


BIAS = "post_layernorm.bias"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: drop(folder, BIAS), rf"missing tensors: {BIAS} \[32\]$"),
        (lambda folder: drop(folder, BIAS, **{BIAS: torch.zeros(3)}), rf"{BIAS}: shape \[3\], the config says \[32\]$"),
        (lambda folder: drop(folder, BIAS, **{BIAS: torch.ones(32).to(torch.int8)}), rf"{BIAS} is stored as I8, as in"),
        (
            lambda folder: drop(folder, BIAS, **{BIAS: torch.ones(32), "a.b": torch.ones(3)}),
            r"unexpected .*: a\.b \[3\]",
        ),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"none"), r"model\.safetensors is a text and"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"contains no model\*\.safetensors"),
        (lambda folder: (folder / "config.json").write_text("{}"), "its config cannot be read"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "gpt2"}'), "'gpt2'; allowed are clip"),
    ],
)
def test_a_tower_that_does_not_fit_is_one_line(tmp_path: Path, spoil: Any, message: str) -> None:
    TOWERS["clip_vision_model"]().save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        load_vision_tower(str(tmp_path), torch.float32)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_pickle_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    TOWERS["clip_vision_model"]().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({BIAS: Command()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="something else than tensors"):
        load_vision_tower(str(tmp_path), torch.float32)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("model.norm.weight", None, r"missing tensors: model\.norm\.weight \[48\]$"),
        ("model.norm.weight", torch.ones(48).to(torch.int8), r"model\.norm\.weight is stored as I8, as in a quantized"),
        ("extra", torch.ones(2), r"unexpected tensors: extra \[2\]$"),
    ],
)
def test_a_language_model_that_does_not_fit_is_one_line(
    make_text_config: Factory, tmp_path: Path, name: str, tensor: torch.Tensor | None, message: str
) -> None:
    AutoModelForCausalLM.from_config(make_text_config("llama")).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    kept = {key: each for key, each in load_file(path).items() if key != name}
    save_file(kept if tensor is None else {**kept, name: tensor}, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=message) as caught:
        load_language_model(str(tmp_path), torch.float32)
    assert "\n" not in str(caught.value) and f"language model {tmp_path}" in str(caught.value)


@pytest.mark.parametrize("place", ["n" * 300, "nowhere", "/no/such/folder", "a/b/c"])
def test_a_place_that_is_none(place: str) -> None:
    with pytest.raises(UserError, match=f"{place}: no such folder, and no Hub id"):
        text_config_of(place)


def test_a_family_that_does_not_fit(tmp_path: Path) -> None:
    GPT2Config().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="'gpt2': allowed are llama, mistral, qwen2"):
        text_config_of(str(tmp_path))


def test_a_field_that_differs_is_named_and_one_that_is_not_given_is_the_parts(make_text_config: Factory) -> None:
    rope = {"rope_type": "default", "rope_theta": 5e5}
    own = make_text_config("llama", rope_parameters=rope)
    check_same({}, own, "text_config", "place")
    check_same({"model_type": "llama", "hidden_size": 48, "rope_parameters": rope}, own, "text_config", "place")
    for name, value in (("hidden_size", 64), ("model_type", "qwen2")):
        with refuses(f"model.text_config.{name}", value):
            check_same({name: value}, own, "text_config", "place")


def test_presets_values_are_what_published_configs_become(tmp_path: Path) -> None:
    """A published config.json has the rotary fields of its time, which transformers reads into one."""
    rope = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3"}
    rope["original_max_position_embeddings"] = 8192
    fields = {"model_type": "llama", "rope_theta": 500000.0, "rope_scaling": rope, "eos_token_id": [1, 2]}
    (tmp_path / "config.json").write_text(json.dumps({**fields, "vocab_size": 99, "num_hidden_layers": 1}))
    preset = resolve(["model=llava_mini_llama31_8b"]).model.text_config
    given = {"rope_parameters": preset["rope_parameters"], "eos_token_id": [1, 2], "tie_word_embeddings": False}
    check_same(given, text_config_of(str(tmp_path)), "text_config", str(tmp_path))
