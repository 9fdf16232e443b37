"""`llava-mini world`: make the toy world's data and pretrained parts again from the seed.

Stage 0 trains the vision tower. Stage 1 aligns projector and language model on captions. Stage 2 trains the same parts
on questions without compression. Its result is the uncompressed instruction model, which represents a trained LLaVA
and from which the runs of a comparison start. Each is written as half-precision safetensors, with the recipe, metrics
and hash next to it. This is the form in which they ship with the repository.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, RandomSampler
from transformers import CLIPImageProcessorPil, CLIPVisionConfig

from llava_mini import assembly
from llava_mini.config import Config, instantiate, resolve, save
from llava_mini.config.overrides import literal
from llava_mini.data.toyworld.tokenizer import build_tokenizer
from llava_mini.data.toyworld.vision import TARGET_CLASSES, Scenes
from llava_mini.errors import UserError, refused
from llava_mini.files import atomic_path, write_json, writing
from llava_mini.models.tensor_files import save_tensors
from llava_mini.models.vision_tower import build_vision_tower
from llava_mini.run.folder import claim
from llava_mini.run.identity import UNHASHED
from llava_mini.run.provenance import code_version, git_commit
from llava_mini.stages.callbacks import Clock, Progress
from llava_mini.training.run import assemble, fit, interruptible

log = logging.getLogger("llava_mini")


def make_tiny_world(overrides: list[str], config_dirs: tuple[str, ...] = ()) -> Path:
    """Train the stages that `world.stages` names, and return the folder with `stage0`, `stage1` and `uncompressed`.

    The overrides are for the configs of all stages; `world.out` says where the checkpoints go.
    """
    stage0 = resolve(["recipe=tiny_stage0", *overrides], config_dirs)
    if (ranks := assembly.num_ranks(stage0)) > 1:
        why = f"trainer.devices and num_nodes ask for {ranks} processes: the toy world is made by one"
        raise UserError(why, key="trainer.devices", value=stage0.trainer.devices)
    out, stages = Path(stage0.world.out), stage0.world.stages
    if 0 in stages and (times := stage0.accumulate) > 1:
        allowed = "1 with world.vision_batch_size, or world.stages=[1]"
        raise refused("trainer.accumulate_grad_batches", times, "a step of stage 0 is one batch", allowed=allowed)
    if 0 in stages:
        train_vision(stage0, out / "stage0")
    tokenizer = out / "stage1"
    for number, name, weights in ((1, "stage1", ["stage0"]), (2, "uncompressed", ["stage0", "stage1"])):
        if number not in stages:
            continue
        with writing(tokenizer):
            build_tokenizer().save_pretrained(str(tokenizer))
        folders = ",".join(literal(str(out / place)) for place in weights)
        places = [f"model.weights=[{folders}]", f"model.tokenizer={literal(str(tokenizer))}"]
        train_language(resolve([f"recipe=tiny_{name}", *overrides, *places], config_dirs), out / name)
    return out


def train_vision(config: Config, folder: Path) -> None:
    """Run stage 0: train the vision tower with supervision of every patch, and write it to `folder`."""
    assembly.seed_run(config)
    clock = Clock()
    spec, world = config.model, config.world
    vision_fields = {key: value for key, value in spec.vision_config.items() if key != "model_type"}
    tower = build_vision_tower(CLIPVisionConfig(**vision_fields))
    stage = instantiate(
        config.stage,
        "stage",
        vision_tower=tower,
        feature_layer=spec.vision_feature_layer,
        target_classes=TARGET_CLASSES,
    )
    image_processor = CLIPImageProcessorPil(**spec.image_processor)
    train_set = _drawn(config, image_processor, "train", world.vision_scenes, world.vision_boards)
    val_set = _drawn(config, image_processor, "val", world.vision_val_scenes, world.vision_val_scenes)
    steps, batch = config.trainer.steps, world.vision_batch_size
    order = RandomSampler(train_set, replacement=True, num_samples=steps * batch, generator=torch.Generator())
    order.generator.manual_seed(config.seed)
    trainer = assembly.make_trainer(
        config, callbacks=[Progress()], logger=False, enable_checkpointing=False, val_check_interval=steps
    )
    with interruptible():
        trainer.fit(stage, DataLoader(train_set, batch, sampler=order), DataLoader(val_set, 100))
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if "/" in name}
    tensors = {f"vision_tower.{name}": tensor for name, tensor in tower.state_dict().items()}
    write_checkpoint(folder, tensors, config, {**metrics, **clock.read()})


def _drawn(
    config: Config, processor: CLIPImageProcessorPil, split: str, scenes: int, boards: int
) -> ConcatDataset[tuple[Tensor, dict[str, Tensor]]]:
    """Return scenes and boards of stage 0's own streams, with their targets.

    Raises:
        UserError: the config has no seed of the toy world.
    """
    seed, normal = config.data.world_seed, {"mean": processor.image_mean, "std": processor.image_std}
    if seed is None:
        raise refused("data.world_seed", None, "the toy world is made from a seed", only="a number, 0 or more")
    streams = {f"vision-{split}": scenes, f"vision-board-{split}": boards}
    return ConcatDataset([Scenes(stream, seed, count, **normal) for stream, count in streams.items()])


def train_language(config: Config, folder: Path) -> None:
    """Run stage 1 or 2: train projector and language model on captions or questions, and write them to `folder`.

    An interrupted stage resumes from the checkpoint in the run's folder. A finished one leaves the folder empty.
    """
    run_dir = Path(config.run_dir)
    claim(run_dir, config)
    save(config, run_dir / "config.yaml")
    clock = Clock()
    run = assemble(config)
    log.info("%s", run.stage.parts_table())
    trainer = fit(run, config, clock, [])
    trained = {name for name, p in run.model.named_parameters() if p.requires_grad}
    tensors = {name: tensor for name, tensor in run.model.state_dict().items() if name in trained}
    # Validated here, because a training that was complete when interrupted is not validated again by the trainer.
    scores = trainer.validate(run.stage, run.datamodule.val_dataloader(), verbose=False)[0]
    write_checkpoint(folder, tensors, config, {**scores, **clock.read()})
    for path in run_dir.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "config.yaml":
            path.unlink()
    (run_dir / "config.yaml").unlink()  # last: without it the rest is no run's folder


def write_checkpoint(folder: Path, tensors: dict[str, Tensor], config: Config, metrics: dict[str, Any]) -> None:
    """Write model.safetensors in half precision, and recipe.json with config, metrics and the file's hash."""
    path = folder / "model.safetensors"
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        save_tensors({name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}, temporary)
    recipe = {
        "config": {key: value for key, value in config.to_dict().items() if key not in UNHASHED},
        "metrics": metrics,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
        "code_version": code_version(),
        "commit": git_commit(),
    }
    write_json(folder / "recipe.json", recipe)
    log.info("%s: %d bytes, %s", path, recipe["bytes"], metrics)
