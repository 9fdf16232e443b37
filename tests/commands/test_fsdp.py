"""Two CPU ranks that hold a share of every weight train as two ranks with whole models do, and resume.

Some batches show no image, so a rank must run layers that it has no use for, or the other one waits for ever.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llava_mini.files import rank_paths


def losses(run_dir: Path) -> list[tuple[int, str, float]]:
    lines = [json.loads(line) for path in rank_paths(run_dir / "history.jsonl") for line in path.open()]
    return sorted((line["step"], line["keys"][0], line["loss"]) for line in lines)


def test_fsdp_trains_and_resumes_as_ddp_does(smoke: Callable, llava_mini: Callable, tmp_path: Path) -> None:
    common = ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.checkpoint_every=3", "data.batch_size=2"]
    runs = {}
    for strategy in ("auto", "fsdp"):
        run_dir = tmp_path / strategy
        arguments = smoke(f"trainer.strategy={strategy}", f"run_dir={run_dir}", *common)
        done = llava_mini("train", *arguments, timeout=600)
        assert done.returncode == 0, done.stderr
        runs[strategy] = losses(run_dir)
    whole, dealt = runs["auto"], runs["fsdp"]
    assert [line[:2] for line in dealt] == [line[:2] for line in whole]
    assert [line[2] for line in dealt] == pytest.approx([line[2] for line in whole], rel=1e-3)

    run_dir = tmp_path / "fsdp"
    checkpoint = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3
    same = torch.load(tmp_path / "auto" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert checkpoint["state_dict"].keys() == same.keys()
    for name, tensor in checkpoint["state_dict"].items():
        torch.testing.assert_close(tensor, same[name], rtol=1e-2, atol=1e-3)
    result = (run_dir / "result.json").read_text()
    (run_dir / "result.json").unlink()
    assert llava_mini("train", *arguments, timeout=600).returncode == 0
    assert [line[2] for line in losses(run_dir)] == pytest.approx([line[2] for line in dealt], rel=1e-5)
    assert json.loads((run_dir / "result.json").read_text())["accuracy"] == json.loads(result)["accuracy"]
