"""QLoRA from end to end: trained, killed, continued, merged; and what cannot be merged is one line."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tests.several_ranks import ROOT, Nursery

from llava_mini.cli import main
from llava_mini.config import load, resolve
from llava_mini.finetune import load_trained
from llava_mini.models import LlavaMiniForConditionalGeneration
from llava_mini.training.run import assemble, train_run

QLORA = [
    "recipe=tiny_qlora", "data.folder={world}/toyworld-qlora", "finetune.lora.dropout=0.3",
    "data.sizes={caption-train:8,caption-val:8,instruct-train:64,instruct-val:16,instruct-test:16}",
    "memory.optimizer=adamw_8bit", "trainer.max_steps=6", "trainer.val_every=6", "trainer.checkpoint_every=2",
    "data.batch_size=4", "tracking.enabled=false",
]  # fmt: skip

# As where neither PEFT nor bitsandbytes is installed.
LOADS = """
import sys
sys.modules["peft"] = sys.modules["bitsandbytes"] = None
import torch, llava_mini.models
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1]).eval()
AutoProcessor.from_pretrained(sys.argv[1])
ids = torch.arange(10, 20)[None]
torch.save(model(input_ids=ids).logits.detach(), sys.argv[2])
"""


@pytest.fixture(scope="module")
def overrides(world_dir: Path) -> list[str]:
    return [each.format(world=world_dir) if "{world}" in each else each for each in QLORA]


@pytest.fixture(scope="module")
def run_dir(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished QLoRA run of six steps."""
    folder = tmp_path_factory.mktemp("qlora") / "run"
    train_run(resolve([*overrides, f"run_dir={folder}"]))
    return folder


def test_a_killed_run_continues_with_the_same_dropout(
    overrides: list[str], run_dir: Path, nursery: Nursery, tmp_path: Path
):
    killed = [*overrides, f"run_dir={tmp_path / 'run'}"]
    status, said = nursery.call("train", *killed, killed_after=5)
    assert status == -signal.SIGKILL, said
    assert main(["train", *killed]) == 0
    for name in ("adapter/adapter_model.safetensors", "trained.safetensors"):
        found, expected = load_file(tmp_path / "run" / "model" / name), load_file(run_dir / "model" / name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in found.items()), name
    assert (tmp_path / "run" / "history.jsonl").read_text() == (run_dir / "history.jsonl").read_text()


def test_a_run_keeps_what_it_trained(run_dir: Path):
    checkpoint = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    names = {name.removeprefix("model.") for name in checkpoint["state_dict"]}
    assert all("lora_" in name for name in names if name.startswith("language_model"))
    assert not (run_dir / "model" / "model.safetensors").exists()
    kept = load_file(run_dir / "model" / "trained.safetensors")
    assert kept.keys() == {name for name in names if "lora_" not in name}
    config = json.loads((run_dir / "model" / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 32, 64)
    assert config["base_model_name_or_path"] == "checkpoints/tiny/stage0, checkpoints/tiny/stage1"
    params = json.loads((run_dir / "result.json").read_text())["params"]
    assert params["language_model"] == 385_856, "as many as before they were packed"


def test_the_merged_model_needs_no_adapters_and_answers_as_the_run(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert main(["merge", str(run_dir), str(tmp_path / "plain"), "--check"]) == 0
    command = [sys.executable, "-c", LOADS, str(tmp_path / "plain"), str(tmp_path / "logits.pt")]
    subprocess.run(command, cwd=ROOT, check=True)
    trained = assemble(load(run_dir / "config.yaml"))
    load_trained(trained.model, run_dir / "model", trained.stage.finetune, trained.base)
    with torch.no_grad():
        expected = trained.model.eval()(input_ids=torch.arange(10, 20)[None]).logits
    # Both compute with the same rounded weights; sums are in another order.
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, rtol=1e-4, atol=1e-4)
    plain = LlavaMiniForConditionalGeneration.from_pretrained(tmp_path / "plain")
    assert not any("lora" in name or "quant" in name for name in plain.state_dict())
    assert not list(tmp_path.glob(".*"))


def resolve_of(run_dir: Path) -> dict:
    config: dict = yaml.safe_load((run_dir / "config.yaml").read_text())
    return config


def refusal(capsys: pytest.CaptureFixture, *arguments: Path | str) -> str:
    """The one line of a command that exits with 2."""
    assert main(["merge", *map(str, arguments)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    return said[0]


def test_what_cannot_be_merged_is_one_line(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert "is there already" in refusal(capsys, run_dir, run_dir)
    assert f"{tmp_path}/config.yaml: no such file" in refusal(capsys, tmp_path, tmp_path / "out")
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(run_dir / "config.yaml", begun)
    assert f"{begun}: the run is not finished" in refusal(capsys, begun, tmp_path / "out")
    whole = tmp_path / "whole"
    whole.mkdir()
    shutil.copy(run_dir / "result.json", whole)
    full = {"language_model": "full", "prefusion": "full", "quantize": None, "lora": None}
    (whole / "config.yaml").write_text(yaml.safe_dump({**resolve_of(run_dir), "finetune": full}))
    assert f"{whole}: no run with adapters" in refusal(capsys, whole, tmp_path / "out")
    (whole / "config.yaml").write_text("finetune: {language_model: lora, prefusion: full, quantize: null}\n")
    assert f"{whole}/config.yaml: missing key choices" in refusal(capsys, whole, tmp_path / "out")
    options = {key: value for key, value in resolve_of(run_dir)["memory"].items() if key != "loss_chunk"}
    (whole / "config.yaml").write_text(yaml.safe_dump({**resolve_of(run_dir), "memory": options}))
    assert f"{whole}/config.yaml: missing key memory.loss_chunk" in refusal(capsys, whole, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_destination_that_cannot_be_written_is_one_line(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    assert "file/x: cannot be made (Not a directory)" in refusal(capsys, run_dir, tmp_path / "file" / "x")
    assert "cannot be made (File name too long)" in refusal(capsys, run_dir, tmp_path / ("x" * 300))

    def full(model: LlavaMiniForConditionalGeneration, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(LlavaMiniForConditionalGeneration, "save_pretrained", full)
    told = refusal(capsys, run_dir, tmp_path / "out")
    assert f"{tmp_path}/out: cannot be written: No space left on device (disk of {tmp_path}: " in told
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_trained_parts_that_are_gone_are_one_line(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    path = copy / "model" / "trained.safetensors"
    tensors = load_file(path)
    save_file({name: tensor for name, tensor in tensors.items() if name.startswith("projector.")}, path)
    assert f"{path}: missing tensors: compressor." in refusal(capsys, copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_for_another_base_is_one_line(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    other, copy = tmp_path / "other", tmp_path / "copy"
    other.mkdir()
    shutil.copytree(run_dir, copy)
    tensors = load_file(ROOT / "checkpoints" / "tiny" / "stage1" / "model.safetensors")
    name = "language_model.model.layers.3.mlp.up_proj.weight"
    save_file({**tensors, name: tensors[name] * 1.01}, other / "model.safetensors")
    config = resolve_of(run_dir)
    config["model"]["weights"][1] = str(other)
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    said = refusal(capsys, copy, tmp_path / "out")
    assert "copy/model: made for another base: language_model has the fingerprint" in said
    assert not (tmp_path / "out").exists()
