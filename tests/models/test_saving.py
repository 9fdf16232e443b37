"""A saved model is the same model: by the Auto classes, in safetensors, in a fresh process, whatever it is made of.

A checkpoint comes from anywhere, so what its config names must not be imported or run.
"""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from llava_mini.errors import UserError
from llava_mini.models import LlavaMiniConfig, LlavaMiniForConditionalGeneration

Factory = Callable[..., Any]
Specs = dict[str, dict[str, Any]]


def reload(folder: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    """The saved model, and what transformers says about missing and unexpected tensors."""
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, **options)
    return model.eval(), info


def assert_same(again: Any, model: Any, info: dict[str, Any], batch: dict[str, Any]) -> None:
    assert isinstance(again, LlavaMiniForConditionalGeneration)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    own, loaded = model.state_dict(), again.state_dict()
    assert own.keys() == loaded.keys()
    assert all(torch.equal(own[name], loaded[name]) for name in own)
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("order", ["release", "paper"])
def test_round_trip(
    make_model: Factory,
    make_text_config: Factory,
    make_sample: Factory,
    collate: Factory,
    orders: Specs,
    tmp_path: Path,
    family: str,
    tied: bool,
    order: str,
) -> None:
    model = make_model(text_config=make_text_config(family, tie_word_embeddings=tied), **orders[order])
    model.save_pretrained(tmp_path)
    again, info = reload(tmp_path)
    assert_same(again, model, info, collate(model, [make_sample(1), make_sample(2, views=5)]))
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    assert (again.get_input_embeddings().weight is again.get_output_embeddings().weight) == tied
    stored = load_file(tmp_path / "model.safetensors")
    assert ("language_model.lm_head.weight" in stored) == (not tied)
    assert again.config.to_dict() == AutoConfig.from_pretrained(tmp_path).to_dict()


@pytest.mark.parametrize("num_fusion_layers", [0, 3])
def test_any_number_of_fusion_layers(
    make_model: Factory, make_sample: Factory, collate: Factory, tmp_path: Path, num_fusion_layers: int
) -> None:
    model = make_model(num_fusion_layers=num_fusion_layers)
    model.save_pretrained(tmp_path)
    again, info = reload(tmp_path)
    assert_same(again, model, info, collate(model, [make_sample(1)]))


def test_generation_is_the_same(make_model: Factory, make_sample: Factory, collate: Factory, tmp_path: Path) -> None:
    model = make_model()
    model.save_pretrained(tmp_path)
    batch = collate(model, [make_sample(1, frames=2)], answers=False)
    options = {"do_sample": False, "max_new_tokens": 5}
    assert torch.equal(reload(tmp_path)[0].generate(**batch, **options), model.generate(**batch, **options))


def test_dtype_and_attention_reach_every_part(
    make_model: Factory, make_sample: Factory, collate: Factory, tmp_path: Path
) -> None:
    model = make_model()
    model.save_pretrained(tmp_path)
    half, _ = reload(tmp_path, dtype=torch.bfloat16, attn_implementation="eager")
    assert {tensor.dtype for tensor in half.parameters()} == {torch.bfloat16}
    assert half.prefusion.config._attn_implementation == half.config.text_config._attn_implementation == "eager"
    batch = collate(model, [make_sample(1)])
    with torch.no_grad():
        error = (half(**batch).logits.float() - model(**batch).logits).abs()
    assert error.mean() < 0.05 and error.max() < 0.5  # 8 bits; positions must have stayed exact
    half.save_pretrained(tmp_path / "half")
    assert reload(tmp_path / "half", dtype="auto")[0].dtype == torch.bfloat16


def test_positions_are_kept_or_made_again(make_model: Factory, tmp_path: Path) -> None:
    """Tables that are computed and not trained: saved with the compressor, made anew for rotary embeddings."""
    model = make_model()
    model.save_pretrained(tmp_path)
    again, _ = reload(tmp_path)
    assert torch.equal(again.compressor.position, model.compressor.position)
    for module in ("prefusion.rotary_emb", "language_model.model.rotary_emb"):
        assert torch.equal(again.get_submodule(module).inv_freq, model.get_submodule(module).inv_freq)


def test_a_missing_tensor_is_reported_and_starts_fresh(make_model: Factory, tmp_path: Path) -> None:
    """Stage 1 leaves checkpoints without a trained compressor: what is missing is initialized as in a new model."""
    model = make_model()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("compressor.")}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again, info = reload(tmp_path)
    assert set(info["missing_keys"]) == {name for name in tensors if name.startswith("compressor.")}
    assert torch.equal(again.compressor.attention.out_proj.weight, torch.eye(32))
    assert torch.equal(again.projector.linear_1.weight, model.projector.linear_1.weight)


def test_a_fresh_process_loads_after_one_import(
    make_model: Factory, make_sample: Factory, collate: Factory, tmp_path: Path
) -> None:
    model = make_model()
    model.save_pretrained(tmp_path / "model")
    batch = collate(model, [make_sample(1)])
    with torch.no_grad():
        save_file({**batch, "logits": model(**batch).logits}, tmp_path / "batch.safetensors")
    program = """
import sys, torch
import llava_mini.models
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText
torch.set_num_threads(1)
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1]).eval()
batch = load_file(sys.argv[2])
logits = batch.pop("logits")
print("same" if torch.equal(model(**batch).logits, logits) else "different")
"""
    arguments = [sys.executable, "-c", program, str(tmp_path / "model"), str(tmp_path / "batch.safetensors")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "same", done.stderr


@pytest.mark.parametrize("package", ["", "llava_mini.models.compressors."])
def test_a_checkpoint_does_not_choose_what_to_import(
    make_model: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    """Not even a module that lies on the path."""
    marker = tmp_path / "imported"
    (tmp_path / "foreign_module.py").write_text(
        "from pathlib import Path\n"
        "from llava_mini.models.compressors.none import NoCompressor\n"
        f"Path({str(marker)!r}).touch()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    make_model().save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["compressor"] = {"_target_": f"{package}foreign_module.NoCompressor"}
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="foreign_module"):
        AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    assert not marker.exists()
    assert "foreign_module" not in sys.modules


def test_config_of_another_model(make_text_config: Factory, tmp_path: Path) -> None:
    make_text_config().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="model_type='llama'"):
        LlavaMiniForConditionalGeneration.from_pretrained(tmp_path)


def test_config_of_the_official_release(make_text_config: Factory, tmp_path: Path) -> None:
    """It has the same model_type; read as ours it would become a model of default size with random weights."""
    fields = {**make_text_config().to_dict(), "model_type": "llava_mini", "compressor_size": 1}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match="text_config"):
        AutoConfig.from_pretrained(tmp_path)


def test_config_is_of_the_registered_type(make_model: Factory, tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "llava_mini" and saved["architectures"] == ["LlavaMiniForConditionalGeneration"]
    assert isinstance(AutoConfig.from_pretrained(tmp_path), LlavaMiniConfig)


def test_weights_get_the_mode_that_the_umask_says(make_model: Factory, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        make_model().save_pretrained(tmp_path / "whole")
        make_model().save_pretrained(tmp_path / "parts", max_shard_size="100KB")
    finally:
        os.umask(before)
    files = list(tmp_path.rglob("*.*"))
    assert len([path for path in files if path.suffix == ".safetensors"]) > 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o640}
