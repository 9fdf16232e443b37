"""The checkpoints that ship with the repository are whole, small, and fit the toy world's model."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava_mini.assembly import build_model, build_tokenizer
from llava_mini.config import resolve
from llava_mini.data.toyworld import tokenizer as toyworld

ROOT = Path(__file__).parents[1]
TINY = ROOT / "checkpoints" / "tiny"
LANGUAGE = {"projector", "language_model"}
PARTS = {"stage0": {"vision_tower"}, "stage1": LANGUAGE, "uncompressed": LANGUAGE}


@pytest.mark.parametrize("stage", PARTS)
def test_a_checkpoint_is_the_one_that_its_recipe_tells_of(stage: str):
    content = (TINY / stage / "model.safetensors").read_bytes()
    recipe = json.loads((TINY / stage / "recipe.json").read_text())
    assert recipe["sha256"] == hashlib.sha256(content).hexdigest()
    assert recipe["bytes"] == len(content)
    assert recipe["config"]["choices"]["experiment"] == f"tiny_{stage}"
    assert recipe["metrics"]


def test_together_they_are_small():
    files = [path for path in TINY.rglob("*") if path.is_file()]
    assert len(files) == 8
    assert sum(path.stat().st_size for path in files) < 4_000_000
    assert {path.suffix for path in files} <= {".safetensors", ".json"}


def test_the_shipped_recipe_is_the_shipped_configs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    for stage in PARTS:
        made_with = json.loads((TINY / stage / "recipe.json").read_text())["config"]
        now = resolve([f"recipe=tiny_{stage}"]).to_dict()
        for group in ("seed", "stage", "compressor", "order"):
            assert made_with[group] == now[group], f"{stage}: {group}"
        assert made_with["fusion"]["num_layers"] == now["fusion"]["num_layers"]
        assert made_with["trainer"]["max_steps"] == now["trainer"]["max_steps"]
        for name in ("vision_config", "text_config", "vision_feature_layer", "image_processor"):
            assert made_with["model"][name] == now["model"][name], f"{stage}: model.{name}"


@pytest.mark.parametrize("start", ["uncompressed", "stage1"])
def test_every_tensor_has_its_place_in_the_model_of_its_start(start: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    config = resolve([f"model.start={start}"])
    assert config.model.weights == ["checkpoints/tiny/stage0", f"checkpoints/tiny/{start}"]
    own = build_model(config, build_tokenizer(config)).state_dict()
    shipped = {stage: load_file(TINY / stage / "model.safetensors") for stage in ("stage0", start)}
    for stage, tensors in shipped.items():
        assert {name.split(".")[0] for name in tensors} == PARTS[stage]
        for name, tensor in tensors.items():
            assert tensor.dtype == torch.float16 and torch.isfinite(tensor).all(), name
            assert torch.equal(own[name], tensor.float()), name
    parts = PARTS["stage0"] | PARTS[start]
    assert {name for name in own if name.split(".")[0] in parts} == {n for each in shipped.values() for n in each}


def test_the_default_start_knows_every_kind_of_question():
    metrics = json.loads((TINY / "uncompressed" / "recipe.json").read_text())["metrics"]
    assert metrics["val/word_accuracy/dense"] > 0.9 and metrics["val/word_accuracy/one_word"] > 0.85


def test_the_shipped_tokenizer_is_the_toy_worlds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    shipped, made = build_tokenizer(resolve([])), toyworld.build_tokenizer()
    assert shipped.get_vocab() == made.get_vocab()
    text = "<image> what color is the circle <answer> red </s>"
    assert shipped(text)["input_ids"] == made(text)["input_ids"]
