"""`llava-mini world`: the tiny world's data and pre-trained parts, made anew from the seed.

Stage 0 gives the vision tower, stage 1 projector and language model. Each is written as half-precision safetensors with
the recipe, metrics and hash beside it, the form in which they ship with the repository.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler
from transformers import CLIPImageProcessorPil, CLIPVisionConfig

from llava_mini import build
from llava_mini.commands.run_folder import claim
from llava_mini.commands.train import assemble, fit, interruptible
from llava_mini.config import instantiate, resolve, save
from llava_mini.data.toyworld.targets import TARGET_CLASSES
from llava_mini.data.toyworld.tokenizer import build_tokenizer
from llava_mini.data.toyworld.vision import Scenes
from llava_mini.errors import UserError
from llava_mini.files import write_json
from llava_mini.models.tensor_files import save_tensors
from llava_mini.models.vision_tower import build_vision_tower
from llava_mini.overrides import literal
from llava_mini.stages.callbacks import Clock, Progress
from llava_mini.sweep.grid import UNHASHED
from llava_mini.sweep.provenance import code_version, git_commit

log = logging.getLogger("llava_mini")


def make_tiny_world(overrides: list[str], config_dirs: tuple[str, ...] = ()) -> Path:
    """Train stage 0 and stage 1 of the tiny world.

    Args:
        overrides: Of both stages' configs; `world.out` says where the two checkpoints go.
        config_dirs: Further folders with config groups.

    Returns:
        The folder with `stage0` and `stage1`.
    """
    stage0 = resolve(["experiment=tiny_stage0", *overrides], config_dirs)
    if (ranks := build.num_ranks(stage0)) > 1:
        raise UserError(f"trainer.devices and machines ask for {ranks} processes: the tiny world is made by one")
    out, stages = Path(stage0["world"]["out"]), stage0["world"]["stages"]
    if 0 in stages:
        train_vision(stage0, out / "stage0")
    if 1 not in stages:
        return out
    vision, language = (literal(str(out / stage)) for stage in ("stage0", "stage1"))
    places = [f"model.weights=[{vision}]", f"model.tokenizer={language}"]
    build_tokenizer().save_pretrained(str(out / "stage1"))
    stage1 = resolve(["experiment=tiny_stage1", *overrides, *places], config_dirs)
    train_language(stage1, out / "stage1")
    return out


def train_vision(config: dict[str, Any], folder: Path) -> None:
    """Stage 0: supervise every patch of the vision tower, write it to `folder`."""
    build.seed_run(config)
    clock = Clock()
    spec, world = config["model"], config["world"]
    vision_fields = {key: value for key, value in spec["vision_config"].items() if key != "model_type"}
    tower = build_vision_tower(CLIPVisionConfig(**vision_fields))
    stage = instantiate(
        config["stage"],
        "stage",
        vision_tower=tower,
        feature_layer=spec["vision_feature_layer"],
        target_classes=TARGET_CLASSES,
    )
    image_processor = CLIPImageProcessorPil(**spec["image_processor"])
    seed, normal = config["data"]["world_seed"], {"mean": image_processor.image_mean, "std": image_processor.image_std}
    train_set = Scenes("vision-train", seed, world["vision_scenes"], **normal)
    val_set = Scenes("vision-val", seed, world["vision_val_scenes"], **normal)
    steps, batch = config["trainer"]["max_steps"], world["vision_batch_size"]
    order = RandomSampler(train_set, replacement=True, num_samples=steps * batch, generator=torch.Generator())
    order.generator.manual_seed(config["seed"])
    trainer = build.make_trainer(
        config, callbacks=[Progress()], logger=False, enable_checkpointing=False, val_check_interval=steps
    )
    with interruptible():
        trainer.fit(stage, DataLoader(train_set, batch, sampler=order), DataLoader(val_set, 100))
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if "/" in name}
    tensors = {f"vision_tower.{name}": tensor for name, tensor in tower.state_dict().items()}
    write_checkpoint(folder, tensors, config, {**metrics, **clock.read()})


def train_language(config: dict[str, Any], folder: Path) -> None:
    """Stage 1: projector and language model on captions, written to `folder`.

    What was interrupted continues from the checkpoint in the run's folder; what is finished leaves none there.
    """
    run_dir = Path(config["run_dir"])
    claim(run_dir, config)
    save(config, run_dir / "config.yaml")
    clock = Clock()
    run = assemble(config)
    log.info("%s", run.stage.parts_table())
    trainer = fit(run, config, clock, [])
    trained = {name for name, p in run.model.named_parameters() if p.requires_grad}
    tensors = {name: tensor for name, tensor in run.model.state_dict().items() if name in trained}
    # Measured here, because a training that was complete when it was interrupted is not validated again.
    loss = trainer.validate(run.stage, run.datamodule.val_dataloader(), verbose=False)[0]["val/loss"]
    write_checkpoint(folder, tensors, config, {"val/loss": loss, **clock.read()})
    shutil.rmtree(run_dir / "checkpoints")
    (run_dir / "config.yaml").unlink()


def write_checkpoint(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any], metrics: dict[str, Any]) -> None:
    """model.safetensors in half precision, and recipe.json with config, metrics and the file's hash."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.safetensors"
    save_tensors({name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}, path)
    recipe = {
        "config": {key: value for key, value in config.items() if key not in UNHASHED},
        "metrics": metrics,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
        "code_version": code_version(),
        "commit": git_commit(),
    }
    write_json(folder / "recipe.json", recipe)
    log.info("%s: %d bytes, %s", path, recipe["bytes"], metrics)
