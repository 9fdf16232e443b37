"""`llava-mini convert`: folders in and out; mistakes are one line, exit status 2, nothing written."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from llava_mini.cli import main


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of LlavaForConditionalGeneration."""
    shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    vision = CLIPVisionConfig(**shape, image_size=24, patch_size=6)
    text = LlamaConfig(**shape, vocab_size=64, eos_token_id=1, bos_token_id=0)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=60)
    folder = tmp_path_factory.mktemp("made") / "llava"
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture
def llava(made: Path, tmp_path: Path) -> Path:
    """A copy of it in tmp_path/llava."""
    return shutil.copytree(made, tmp_path / "llava")


def test_llava_to_ours_to_official_and_back(llava: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    start, official, back = (str(tmp_path / name) for name in ("start", "official", "back"))
    assert main(["convert", "llava", str(llava), start, "--C", "2", "--fusion-layers", "1", "--init", "random"]) == 0
    said = caplog.text
    for line in (
        f"tensors from {llava}",
        "compressor: 10 tensors initialized",
        "prefusion: 9 tensors initialized (random)",
    ):
        assert line in said
    config = AutoModelForImageTextToText.from_pretrained(start).config
    assert (config.compressor["C"], config.num_fusion_layers) == (2, 1)
    assert main(["convert", "to-official", start, official]) == 0
    tower = tmp_path / "tower"
    config.vision_config.save_pretrained(tower)
    assert main(["convert", "official", official, back, "--vision-tower", str(tower)]) == 0
    first, again = (load_file(Path(folder) / "model.safetensors") for folder in (start, back))
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["llava", "nowhere", "new"], "nowhere: no such folder"),
        (["llava", "llava", "full", "--fusion-layers", "1"], "full: is there already"),
        (["llava", "llava", "full/file", "--fusion-layers", "1"], "file: is there already"),
        (["llava", "llava", "llava/inside", "--fusion-layers", "1"], "llava/inside: lies in llava or around it"),
        (["llava", "llava", "link/inside", "--fusion-layers", "1"], "link/inside: lies in llava or around it"),
        (["llava", "llava", ".", "--fusion-layers", "1"], ".: lies in llava or around it; allowed is a folder apart"),
        (["official", "llava", "llava", "--vision-tower", "tower"], "llava: lies in llava or around it"),
        (["to-official", "llava", "llava/../llava/new"], "new: lies in llava or around it"),
        (["llava", "llava", "new", "--C", "5", "--fusion-layers", "1"], "--C 5: allowed are 1 to 4, the side"),
        (["llava", "llava", "new", "--C", "0", "--fusion-layers", "1"], "--C 0"),
        (["llava", "llava", "new", "--fusion-layers", "9"], "--fusion-layers 9: copies at most the language model's 2"),
        (
            ["official", "llava", "new"],
            "another architecture (LlavaForConditionalGeneration), with no mm_vision_select",
        ),
        (["official", "llava", "new"], "allowed is the official release's LlavaMiniLlamaForCausalLM"),
        (["to-official", "llava", "new"], "llava: config of another model (model_type='llava')"),
        (["to-official", "llava", "new"], "`llava-mini convert official` reads the official release's"),
        (["llava", "llava", "n" * 300, "--fusion-layers", "1"], "nnn: cannot be made (File name too long)"),
        (["llava", "n" * 300, "new", "--fusion-layers", "1"], "nnn: no such folder"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    llava: Path, tmp_path: Path, arguments: list[str], message: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    CLIPVisionConfig(hidden_size=48).save_pretrained(tmp_path / "tower")
    (tmp_path / "link").symlink_to(llava)
    before = sorted(tmp_path.rglob("*"))
    assert main(["convert", *arguments]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1] and said[-1].startswith("llava-mini: ")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_is_taken(llava: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["convert", "llava", str(llava), str(tmp_path / "empty"), "--fusion-layers", "0"]) == 0
    assert (tmp_path / "empty" / "model.safetensors").is_file()
